"""A scripted demonstrator for Square: grasp the nut's handle, turn it, and lower it over the peg.

The height at which the nut is carried grows with its misalignment, so that it sinks onto the peg as
it centres itself and rises when it is pushed off.

It succeeds on 200 of 204 fresh seeds, in 98 to 275 steps (135 the middle one), ten of them after
success (`python -m checkpoints.collect task=square episodes=200 seed=2000000 output=square.hdf5`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.demonstrators.hand import Array, Hand, pointing_down, wrap
from envs.demonstrators.motion import CLOSE, OPEN, Approach, Manner, Motion
from envs.robomimic import RobomimicEnv

_PEG_TOP = 0.95
"""Height of the nut's centre when it rests on top of the peg."""
_SEATED = 0.85
"""Height of the nut's centre below which it may be let go."""
_HANDLE = 0.035
"""Distance from hand to handle within which the handle is in the hand."""
_GRIPPED = 0.045
"""Opening of the fingers below which they have the handle."""
_CLOSING = 0.072
"""Opening below which the fingers are on their way."""


@dataclass(frozen=True)
class SquareStyle:
    """How a person puts the nut on the peg this time; lengths in metres, angles in radians.

    Attributes:
        manner: How the arm moves.
        approach: How the hand comes in.
        grasp_offset: (2,) Where the handle is held, from its site: along the handle, and up.
        tilt: (2,) Roll and pitch of the hand.
        hover: Height over the peg's top at which the nut is carried.
        slope: Metres of height kept over the peg for each metre of misalignment.
        lower_speed: Share of the speed at which the nut is lowered.
        retreat: Height by which the hand rises afterwards.
    """

    manner: Manner
    approach: Approach
    grasp_offset: Array
    tilt: Array
    hover: float
    slope: float
    lower_speed: float
    retreat: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "SquareStyle":
        """Draw a style."""
        return cls(
            manner=Manner.draw(rng),
            approach=Approach(hover=rng.uniform(0.05, 0.09), slope=rng.uniform(3.0, 6.0)),
            grasp_offset=np.array([rng.uniform(-0.006, 0.006), rng.uniform(-0.004, 0.004)]),
            tilt=rng.normal(0.0, 0.02, 2),
            hover=rng.uniform(0.03, 0.06),
            slope=rng.uniform(4.0, 8.0),
            lower_speed=rng.uniform(0.5, 0.9),
            retreat=rng.uniform(0.06, 0.12),
        )


class SquareDemonstrator:
    """Puts the square nut on the square peg.

    Args:
        env: A Square environment, in any state.
        rng: Where the style and the tremor come from.
    """

    def __init__(self, env: RobomimicEnv, rng: np.random.Generator) -> None:
        self.style = SquareStyle.draw(rng)
        self._rng = rng
        sim = env.robosuite.sim
        self._data = sim.data
        self._nut = env.robosuite.obj_body_id[env.robosuite.nuts[0].name]
        self._site = sim.model.site_name2id("SquareNut_handle_site")
        self._peg = np.array(sim.data.body_xpos[env.robosuite.peg1_body_id])
        self._hand = Hand(env)
        self._motion = Motion(self._hand, self.style.manner, rng)
        self._opening = self._hand.opening
        self._stuck = 0
        self._height = np.inf
        self._goal_yaw: float | None = None
        self._grasp_yaw = 0.0
        self._holding = self._near() and self._opening < _GRIPPED
        self._choose(self._holding)

    def act(self) -> NDArray[np.float32]:
        """Return the action (7,) for the present state."""
        still = abs(self._hand.opening - self._opening) < 5e-4
        self._opening = self._hand.opening
        off = self._peg[:2] - self._position[:2]
        if np.abs(off).max() < 0.02 and self._position[2] < _SEATED:
            return self._leave()
        if self._holding and not (self._near() and self._opening > 0.004):
            self._holding = False
            self._choose(False)
        if self._holding and still and _GRIPPED <= self._opening < _CLOSING:
            self._holding = False  # the fingers are across a corner: again
        if not self._holding and self._arrived():
            self._holding = True
        if not self._holding:
            return self._reach()
        if not (still and self._opening < _GRIPPED) and self._position[2] < 0.85:
            rotation = pointing_down(self._grasp_direction(), self.style.tilt)
            return self._motion.towards(self._hand.position, rotation, CLOSE)
        return self._put_on(off)

    def _reach(self) -> NDArray[np.float32]:
        rotation = pointing_down(self._grasp_direction(), self.style.tilt)
        target = self.style.approach.target(self._hand, self._grasp(), rotation)
        return self._motion.towards(target, rotation, OPEN)

    def _put_on(self, off: Array) -> NDArray[np.float32]:
        """Carry the nut over the peg, and lower it as it comes to be centred."""
        assert self._goal_yaw is not None
        style, height = self.style, self._position[2]
        turn = wrap(self._goal_yaw - self._yaw, 2 * np.pi)
        distance = float(np.linalg.norm(off))
        on_peg = height < _PEG_TOP - 0.003 and distance < 0.012
        missing = max(0.0, distance - 0.0025) + 0.04 * max(0.0, abs(turn) - 0.04)
        if on_peg:
            goal, speed = height - 0.03, style.lower_speed
        else:
            goal = _PEG_TOP - 0.02 + min(style.hover + 0.02, 0.006 + style.slope * missing)
            if missing == 0.0:
                goal = _PEG_TOP - 0.02
            speed = 1.0 if distance > 0.05 else max(style.lower_speed, distance / 0.05)
        target = self._hand.position + np.array([*off, goal - height])
        if distance > 0.03 and height < _PEG_TOP + 0.02:  # up before sideways
            rise = np.clip((height - _PEG_TOP + 0.03) / 0.05, 0.0, 1.0)
            target[:2] = self._hand.position[:2] + rise * off
        elif self._is_stuck(missing):
            target[:2] += 0.006 * self._rng.normal(size=2)
        rotation = pointing_down(self._hand.yaw + np.clip(turn, -0.5, 0.5), style.tilt)
        return self._motion.towards(target, rotation, CLOSE, speed)

    def _is_stuck(self, missing: float) -> bool:
        """Whether the nut is centred but does not sink: it jams on the rim."""
        sinking = self._height - self._position[2] > 0.0015
        self._height = self._position[2]
        jammed = missing < 0.003 and not sinking and self._height < _PEG_TOP + 0.01
        self._stuck = self._stuck + 1 if jammed else max(self._stuck - 1, 0)
        return self._stuck > 8

    def _leave(self) -> NDArray[np.float32]:
        """Open, and rise when the fingers are off the handle."""
        up = self.style.retreat if self._opening > 0.06 else 0.0
        target = self._hand.position + np.array([0.0, 0.0, up])
        rotation = pointing_down(self._hand.yaw, self.style.tilt)
        return self._motion.towards(target, rotation, OPEN)

    @property
    def _position(self) -> Array:
        return np.array(self._data.body_xpos[self._nut])

    @property
    def _yaw(self) -> float:
        rotation = np.array(self._data.body_xmat[self._nut]).reshape(3, 3)
        return float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    @property
    def _handle(self) -> Array:
        """The handle's site (3,)."""
        return np.array(self._data.site_xpos[self._site])

    def _handle_direction(self) -> float:
        """Angle of the handle, from the nut's centre outwards."""
        x, y = (self._handle - self._position)[:2]
        return float(np.arctan2(y, x))

    def _grasp(self) -> Array:
        along, up = self.style.grasp_offset
        angle = self._handle_direction()
        return self._handle + np.array([along * np.cos(angle), along * np.sin(angle), up])

    def _grasp_direction(self) -> float:
        """Yaw at which the fingers close across the handle."""
        return self._handle_direction() + self._grasp_yaw

    def _near(self) -> bool:
        return bool(np.linalg.norm(self._hand.position - self._handle) < _HANDLE)

    def _arrived(self) -> bool:
        off = self._hand.position - self._grasp()
        turn = wrap(self._hand.yaw - self._grasp_direction(), 2 * np.pi)
        return bool(np.linalg.norm(off[:2]) < 0.006 and off[2] < 0.006 and abs(turn) < 0.1)

    def _choose(self, holding: bool) -> None:
        """Choose how to grasp, and which of the nut's four rotations to give it on the peg.

        The last joint turns 2.9 rad either way, and with the handle away from the robot (+x) the
        peg is out of reach; turned towards the robot it is awkward.
        """
        handle = self._handle_direction()
        best = np.inf
        start = np.pi / 2  # of a hand that is not turned
        for quarter in range(4):
            goal = wrap(quarter * np.pi / 2, 2 * np.pi)
            turn = wrap(goal - self._yaw, 2 * np.pi)
            pointing = handle + turn
            if np.cos(pointing) > 0.5:
                continue
            for side in (-np.pi / 2, np.pi / 2):
                yaw = self._hand.yaw if holding else handle + side
                reach = wrap(yaw - start, 2 * np.pi)
                if not holding and not -1.2 < reach < 2.6 or not -1.6 < reach + turn < 2.8:
                    continue
                cost = abs(turn) + 0.5 * abs(reach) + 0.3 * abs(reach + turn)
                cost += 3.0 * (np.cos(pointing) < -0.5)
                if cost < best:
                    best, self._goal_yaw, self._grasp_yaw = cost, goal, side
        if not np.isfinite(best):
            self._goal_yaw = wrap(round(self._yaw / (np.pi / 2)) * np.pi / 2, 2 * np.pi)
            self._grasp_yaw = np.pi / 2
