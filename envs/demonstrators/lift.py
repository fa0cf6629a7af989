"""A scripted demonstrator for Lift: come in over the cube, close the fingers, lift.

The approach is one field rather than a list of waypoints: the height to aim for grows with the
hand's misalignment, so the hand sinks as it centres itself and rises again if it is pushed away.
What to do next can thus be read off an observation (hand, cube, finger opening), which is what a
policy that sees no more needs. People differ, and so do episodes: `LiftStyle` is drawn anew each
time.

It succeeds on 200 of 200 fresh seeds, in 45 to 136 steps (59 the middle one), ten of them after
success (`python -m checkpoints.collect task=lift episodes=200 seed=2000000 output=lift.hdf5`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.demonstrators.hand import Array, Hand, pointing_down, wrap
from envs.demonstrators.motion import Pauses
from envs.robomimic import RobomimicEnv

_XY_TOLERANCE = 0.006
_Z_TOLERANCE = 0.006
_YAW_TOLERANCE = 0.12
_COMFORTABLE_TURN = 1.2
"""Largest turn of the hand, in radians, by which a person would reach for the farther sides."""
_SLEW = 0.3
"""Largest change of a command from one step to the next."""


@dataclass(frozen=True)
class LiftStyle:
    """How a person lifts the cube this time; lengths in metres, angles in radians.

    Attributes:
        speed: Largest translation command of the approach (1 is about 0.3 m/s).
        turn_speed: Largest rotation command.
        gain: Servo gain: high brakes late, low early.
        hover: Height over the grasp at which the hand comes in.
        slope: Metres of height kept for each metre of misalignment.
        sway: (2,) Side-step of the path where it is 0.12 m over the grasp.
        slow_height: Height over the grasp at which the hand slows down to look.
        slow_factor: Speed there, relative to `speed`.
        other_side: Whether to grasp, of the cube's equal pairs of sides, not the pair that is
            nearest to the fingers but the other one, if it is within reach of a comfortable turn.
        grasp_offset: (3,) Where the cube is held, from its centre: along the closing axis, along
            the other horizontal axis, and up.
        yaw_offset: Error of the hand's yaw against the cube's.
        tilt: (2,) Error of the hand's roll and pitch.
        squeeze_steps: Steps between the fingers' arrival at the cube and the lift.
        lift: (3,) Where the hand goes after the grasp, from there.
        lift_speed: Largest translation command of the lift.
        tremor: Standard deviation of the translation commands' slow noise.
        pauses: When it stops to look.
    """

    speed: float
    turn_speed: float
    gain: float
    hover: float
    slope: float
    sway: Array
    slow_height: float
    slow_factor: float
    other_side: bool
    grasp_offset: Array
    yaw_offset: float
    tilt: Array
    squeeze_steps: int
    lift: Array
    lift_speed: float
    tremor: float
    pauses: Pauses

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "LiftStyle":
        """Draw a style."""
        return cls(
            speed=rng.uniform(0.4, 0.9),
            turn_speed=rng.uniform(0.25, 0.5),
            gain=rng.uniform(1.2, 2.5),
            hover=rng.uniform(0.05, 0.13),
            slope=rng.uniform(3.0, 8.0),
            sway=rng.normal(0.0, 0.02, 2).clip(-0.04, 0.04),
            slow_height=rng.uniform(0.01, 0.07),
            slow_factor=rng.uniform(0.3, 1.0),
            other_side=bool(rng.random() < 0.4),
            grasp_offset=np.array(
                [rng.uniform(-0.003, 0.003), rng.uniform(-0.008, 0.008), rng.uniform(-0.004, 0.008)]
            ),
            yaw_offset=rng.normal(0.0, 0.05),
            tilt=rng.normal(0.0, 0.02, 2),
            squeeze_steps=int(rng.integers(0, 4)),
            lift=np.array([*rng.normal(0.0, 0.015, 2), rng.uniform(0.08, 0.16)]),
            lift_speed=rng.uniform(0.4, 1.0),
            tremor=rng.uniform(0.0, 0.05),
            pauses=Pauses.draw(rng),
        )


class LiftDemonstrator:
    """Lifts the cube once.

    Args:
        env: A Lift environment, just reset.
        rng: Where the style and the tremor come from.
    """

    def __init__(self, env: RobomimicEnv, rng: np.random.Generator) -> None:
        self.style = LiftStyle.draw(rng)
        self._rng = rng
        self._data = env.robosuite.sim.data
        self._cube = env.robosuite.cube_body_id
        self._hand = Hand(env)
        self._side = self._choose_side()
        self._command = np.zeros(6)
        self._tremor = np.zeros(3)
        self._grasp: Array | None = None
        self._opening = self._hand.opening
        self._squeezed = 0
        self._step = 0

    def act(self) -> NDArray[np.float32]:
        """Return the action (7,) for the present state."""
        if self._grasp is not None and self._lost():
            self._grasp = None
        if self._grasp is None and self._arrived():
            self._grasp, self._squeezed = self._hand.position, 0
        if self._grasp is None:
            command, grip = self._approach(), -1.0
        else:
            command, grip = self._hold_and_lift(self._grasp), 1.0
        if self.style.pauses.at(self._step):
            command = np.zeros(6)
        self._step += 1
        self._command = self._command + np.clip(command - self._command, -_SLEW, _SLEW)
        return np.array([*self._command, grip], dtype=np.float32).clip(-1.0, 1.0)

    def _approach(self) -> Array:
        """Command (6,) towards the grasp, keeping height while misaligned."""
        style, hand = self.style, self._hand
        grasp, height = self._grasp_point(), self._height()
        aim = grasp.copy()
        aim[:2] += style.sway * np.clip(height / 0.12, 0.0, 1.0)
        target = pointing_down(self._yaw() + style.yaw_offset, style.tilt)
        off_xy = float(np.linalg.norm(aim[:2] - hand.position[:2]))
        off_yaw = float(np.linalg.norm(hand.rotation_error(target)))
        misalignment = max(0.0, off_xy - _XY_TOLERANCE) + 0.1 * max(0.0, off_yaw - _YAW_TOLERANCE)
        aim[2] += min(style.hover, style.slope * misalignment)

        nearness = np.exp(-(((height - style.slow_height) / 0.02) ** 2))
        speed = style.speed * (1.0 - (1.0 - style.slow_factor) * nearness)
        self._tremor = 0.8 * self._tremor + 0.6 * style.tremor * self._rng.normal(size=3)
        translation = hand.translation_to(aim, style.gain, speed)
        # A steady hand near the cube: the tremor fades with the remaining distance.
        translation += self._tremor * np.clip(np.linalg.norm(aim - hand.position) / 0.05, 0.0, 1.0)
        return np.concatenate([translation, hand.rotation_to(target, style.gain, style.turn_speed)])

    def _hold_and_lift(self, grasp: Array) -> Array:
        """Command (6,) that keeps still until the fingers hold the cube, and then lifts."""
        opening = self._hand.opening
        if abs(opening - self._opening) < 5e-4 and opening < 0.06:
            self._squeezed += 1
        self._opening = opening
        if self._squeezed <= self.style.squeeze_steps:
            return np.zeros(6)
        lifted = self._hand.translation_to(
            grasp + self.style.lift, self.style.gain, self.style.lift_speed
        )
        return np.concatenate([lifted, np.zeros(3)])

    def _arrived(self) -> bool:
        """Whether the hand is where the fingers may close."""
        off = self._hand.position - self._grasp_point()
        off_yaw = wrap(self._hand.yaw - self._yaw() - self.style.yaw_offset, 2 * np.pi)
        return bool(
            np.linalg.norm(off[:2]) < _XY_TOLERANCE
            and off[2] < _Z_TOLERANCE
            and abs(off_yaw) < _YAW_TOLERANCE
        )

    def _lost(self) -> bool:
        """Whether the fingers have closed beside the cube, or it has slipped out of them."""
        gap = np.linalg.norm(self._data.body_xpos[self._cube] - self._hand.position)
        return bool(self._hand.opening < 0.01 or gap > 0.04)

    def _height(self) -> float:
        """Height of the hand over the grasp in metres."""
        return float(self._hand.position[2] - self._grasp_point()[2])

    def _grasp_point(self) -> Array:
        """Where the grip site is to be when the fingers close (3,)."""
        yaw = self._yaw()
        along, across, up = self.style.grasp_offset
        closing = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        other = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        cube = np.array(self._data.body_xpos[self._cube])
        return cube + along * closing + across * other + np.array([0.0, 0.0, up])

    def _yaw(self) -> float:
        """Yaw of the closing axis at which the fingers meet the chosen sides of the cube."""
        return self._cube_yaw() + self._side * np.pi / 2

    def _cube_yaw(self) -> float:
        rotation = np.array(self._data.body_xmat[self._cube]).reshape(3, 3)
        return float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def _choose_side(self) -> int:
        """Quarter turns from the cube's x axis to the sides that are grasped."""
        turn = wrap(self._cube_yaw() - self._hand.yaw, np.pi / 2)
        other_turn = turn - np.copysign(np.pi / 2, turn)
        if self.style.other_side and abs(other_turn) < _COMFORTABLE_TURN:
            turn = other_turn
        return round((self._hand.yaw + turn - self._cube_yaw()) / (np.pi / 2))
