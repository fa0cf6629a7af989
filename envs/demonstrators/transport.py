"""A scripted demonstrator for Transport: the hammer goes from arm 0 to arm 1 and into its bin.

Each arm does what the present state asks for: as long as the lid is on the bin, arm 0 sees to the
lid, then to the hammer; as long as the trash lies about, arm 1 sees to the trash. They meet with
the hammer in mid-air, and each watches the other's hand.

It succeeds on 60 of 60 fresh seeds, in 341 to 509 steps (402 the middle one), ten of them after
success (`python -m checkpoints.collect task=transport episodes=60 seed=2000000
output=transport.hdf5`). Before it paused at times, a second demonstrator that took over after 20 to
250 steps of its own actions with strong slow noise (AR(1), 0.9 from step to step, standard
deviation 0.3 to 0.5) succeeded on 17 of 20 seeds (400000 on) before the limit of 700 steps; in the
others a wrist stayed wound up. A hammer that falls between the tables is out of reach.
"""

import numpy as np
from numpy.typing import NDArray

from envs.demonstrators.grasping import DOWN, Arm, Grip, up_first
from envs.demonstrators.motion import CLOSE, OPEN
from envs.demonstrators.transport_scene import BIN_FLOOR, LID_DOWN, RIM, Hammer, Scene
from envs.demonstrators.transport_style import TransportStyle
from envs.robomimic import RobomimicEnv

_WIDTHS = {"lid": 0.02, "hammer": 0.03, "trash": 0.04}
"""Openings of the fingers that hold something."""
_FREE = np.array([[0.0, -0.2, 1.1], [0.0, 0.2, 1.1]])
"""Where the hands can turn freely."""
_CLEAR = 1.0
"""Height of an empty hand that goes over the bins."""
_LID_BELOW, _TRASH_BELOW = 0.025, 0.02
"""How far the lid reaches below its handle's middle, and the trash below its own."""
_HANDS_APART = 0.11
"""Distance along the handle that two hands need."""
_OFF_HANDLE = 0.07
"""Distance from the handle at which a hand is out of the way."""

_AWAY_FROM_GIVER, _AWAY_FROM_TAKER = (-0.36, -0.2), (0.36, 0.2)
"""Where, along y, a hand is far enough from its arm to be leant the other way."""


class TransportDemonstrator:
    """Transports the hammer, and clears the trash away.

    Args:
        env: A Transport environment, in any state.
        rng: Where the style and the tremor come from.
    """

    def __init__(self, env: RobomimicEnv, rng: np.random.Generator) -> None:
        self.style = TransportStyle.draw(rng)
        scene = Scene(env)
        self._giver = _Giver(env, scene, self.style, rng)
        self._taker = _Taker(env, scene, self.style, rng)

    def act(self) -> NDArray[np.float32]:
        """Return the action (14,), arm 0's and arm 1's, for the present state."""
        self._giver.look()
        self._taker.look()
        return np.concatenate([self._giver.act(self._taker), self._taker.act(self._giver)])


class _Giver:
    """Arm 0: takes the lid off the bin, and holds the hammer out to arm 1."""

    def __init__(
        self, env: RobomimicEnv, scene: Scene, style: TransportStyle, rng: np.random.Generator
    ) -> None:
        self._style, self._scene = style, scene
        self._arm = Arm(env, 0, np.pi, _FREE[0], style.tilts[0], style.manners[0], rng)
        self.hand = self._arm.hand
        here = self.hand.position
        self._lid = Grip(self.hand, _WIDTHS["lid"], scene.lid_nearest(here))
        self.hammer = Grip(self.hand, _WIDTHS["hammer"], scene.hammer.nearest(here))

    def look(self) -> None:
        here = self.hand.position
        self._lid.look(self._scene.lid_nearest(here))
        self.hammer.look(self._scene.hammer.nearest(here))

    def act(self, taker: "_Taker") -> NDArray[np.float32]:
        hammer = self._scene.hammer
        taken = taker.hammer.holding
        if taker.hammer.firm or taken and not self.hammer.holding:
            return self._let_go(hammer)
        if self.hammer.holding:
            # No tug of war while the other's fingers close.
            return self._arm.stay(CLOSE) if taken else self._offer(hammer)
        if self._lid.holding:
            return self._park_lid()
        if self._lid.entangled or self.hammer.entangled:
            return self._arm.stay(OPEN)
        if self._arm.wound:
            return self._arm.unwind(_CLEAR)
        if not self._scene.lid_is_off:
            return self._grasp_lid()
        if hammer.centre[1] < 0.0 and not hammer.on_floor:
            return self._pick(hammer)
        return self._rest()

    def _grasp_lid(self) -> NDArray[np.float32]:
        style, scene = self._style, self._scene
        along, up = style.lid_grasp
        turn = scene.lid_turn
        point = scene.lid + np.array([-along * np.sin(turn), along * np.cos(turn), up])
        rotation = self._arm.pose(turn, style.lid_lean)
        return self._arm.reach(self._lid, point, rotation, style.lid_approach, DOWN, _CLEAR)

    def _park_lid(self) -> NDArray[np.float32]:
        """Up, away from the bin, and down on the table."""
        style, lid = self._style, self._scene.lid
        if self._scene.lid_is_off and lid[2] < LID_DOWN + 0.008:
            self._lid.holding = False
            return self._arm.stay(OPEN)
        if not self._lid.firm:
            return self._arm.stay(CLOSE)
        distance = float(np.linalg.norm(style.park - lid[:2]))
        kept = style.park_slope * max(0.0, distance - 0.015)
        goal = np.array([*style.park, min(style.lid_height, LID_DOWN + kept)])
        if distance > 0.08:
            goal = up_first(lid, goal, lid[2] - _LID_BELOW, RIM + 0.005)
        return self._arm.bring(lid, goal, self._arm.pose(style.park_turn, style.lid_lean))

    def _pick(self, hammer: Hammer) -> NDArray[np.float32]:
        style = self._style
        point = hammer.at(style.pick_along) + np.array([0.0, 0.0, style.pick_up])
        rotation = self._arm.pose(hammer.turn, style.pick_lean)
        return self._arm.reach(self.hammer, point, rotation, style.pick_approach, DOWN, _CLEAR)

    def _offer(self, hammer: Hammer) -> NDArray[np.float32]:
        """Up out of the bin, and out over the gap, turning the handle towards arm 1."""
        style = self._style
        if not self.hammer.firm:
            return self._arm.stay(CLOSE)
        here = self.hand.position
        raised = _share(hammer.low, RIM, RIM + 0.06)
        lean = _mix(style.pick_lean, style.offer_lean, _share(here[1], *_AWAY_FROM_GIVER))
        rotation = self._arm.pose((1.0 - raised) * hammer.turn, lean)
        # The hand and not the hammer is steered, which swings.
        goal = style.handover + np.array([0.0, hammer.along(here), 0.0])
        return self._arm.bring(here, up_first(here, goal, hammer.low, RIM + 0.01), rotation)

    def _let_go(self, hammer: Hammer) -> NDArray[np.float32]:
        """Open, draw back from the handle, and only then leave."""
        self.hammer.holding = False
        if self.hammer.entangled:
            return self._arm.stay(OPEN)
        if np.linalg.norm(self.hand.position - hammer.nearest(self.hand.position)) < 0.1:
            rotation = self.hand.rotation
            back = self.hand.position - 0.1 * rotation[:, 2] + np.array([0.0, -0.03, 0.0])
            return self._arm.go(back, rotation, 0.0)
        return self._rest()

    def _rest(self) -> NDArray[np.float32]:
        rotation = self._arm.pose(0.0, self._style.rest_lean)
        return self._arm.go(self._style.rests[0], rotation, _CLEAR, 0.6)


class _Taker:
    """Arm 1: clears the trash away, takes the hammer from arm 0 and puts it down."""

    def __init__(
        self, env: RobomimicEnv, scene: Scene, style: TransportStyle, rng: np.random.Generator
    ) -> None:
        self._style, self._scene = style, scene
        self._arm = Arm(env, 1, 0.0, _FREE[1], style.tilts[1], style.manners[1], rng)
        self.hand = self._arm.hand
        self._trash = Grip(self.hand, _WIDTHS["trash"], scene.trash)
        self.hammer = Grip(self.hand, _WIDTHS["hammer"], scene.hammer.nearest(self.hand.position))

    def look(self) -> None:
        self._trash.look(self._scene.trash)
        self.hammer.look(self._scene.hammer.nearest(self.hand.position))

    def act(self, giver: _Giver) -> NDArray[np.float32]:
        hammer = self._scene.hammer
        if self.hammer.holding:
            gap = giver.hand.position - hammer.nearest(giver.hand.position)
            if not self.hammer.firm or np.linalg.norm(gap) < _OFF_HANDLE:
                return self._arm.stay(CLOSE)
            return self._place(hammer)
        if self._trash.holding:
            return self._throw()
        if self._trash.entangled or self.hammer.entangled:
            return self._arm.stay(OPEN)
        if self._arm.wound:
            return self._arm.unwind(_CLEAR)
        if not self._scene.trash_is_away:
            return self._grasp_trash()
        if giver.hammer.holding:
            return self._take(hammer, giver)
        if self._is_placed(hammer) or hammer.on_floor:
            rotation = self._arm.pose(0.0, self._style.rest_lean)
            return self._arm.go(self._style.rests[1], rotation, _CLEAR, 0.6)
        if hammer.centre[1] > 0.0:
            return self._pick(hammer)
        return self._wait()

    def _grasp_trash(self) -> NDArray[np.float32]:
        style, scene = self._style, self._scene
        rotation = self._arm.pose(scene.trash_turn, style.trash_lean)
        point = scene.trash + style.trash_grasp
        return self._arm.reach(self._trash, point, rotation, style.trash_approach, DOWN, _CLEAR)

    def _throw(self) -> NDArray[np.float32]:
        """Up out of the target bin, and over to the trash bin."""
        style, trash = self._style, self._scene.trash
        off = self._scene.trash_bin[:2] + style.trash_place - trash[:2]
        if np.abs(off).max() < 0.06 and trash[2] < style.trash_release + 0.008:
            self._trash.holding = False
            return self._arm.stay(OPEN)
        if not self._trash.firm:
            return self._arm.stay(CLOSE)
        distance = float(np.linalg.norm(off))
        low = trash[2] - _TRASH_BELOW
        height = min(style.trash_height, style.trash_release + 5.0 * max(0.0, distance - 0.03))
        goal = np.array([*trash[:2] + off, height])
        if distance > 0.1:
            goal = up_first(trash, goal, low, RIM + 0.005)
        raised = _share(low, RIM, RIM + 0.03)
        rotation = self._arm.pose((1.0 - raised) * self._scene.trash_turn, style.trash_lean)
        return self._arm.bring(trash, goal, rotation)

    def _wait(self) -> NDArray[np.float32]:
        style = self._style
        out = _share(self.hand.position[1], *_AWAY_FROM_TAKER)
        rotation = self._arm.pose(0.0, _mix(style.trash_lean, style.take_lean, out))
        return self._arm.go(style.ready, rotation, _CLEAR)

    def _take(self, hammer: Hammer, giver: _Giver) -> NDArray[np.float32]:
        """Come to the free end of the handle as the hammer comes to the gap."""
        style = self._style
        if hammer.centre[1] < -0.05:
            return self._wait()
        beyond = hammer.along(giver.hand.position) + _HANDS_APART
        point = hammer.at(min(0.085, max(style.take_along, beyond)))
        rotation = self._arm.pose(hammer.turn, style.take_lean)
        return self._arm.reach(
            self.hammer, point, rotation, style.take_approach, rotation[:, 2], _CLEAR
        )

    def _pick(self, hammer: Hammer) -> NDArray[np.float32]:
        """Pick up a hammer that was dropped."""
        style = self._style
        rotation = self._arm.pose(hammer.turn, style.place_lean)
        point = hammer.at(style.take_along)
        return self._arm.reach(self.hammer, point, rotation, style.trash_approach, DOWN, _CLEAR)

    def _place(self, hammer: Hammer) -> NDArray[np.float32]:
        """Over the target bin, turning the handle along its diagonal, and down."""
        style, target = self._style, self._scene.target_bin
        if hammer.inside(target) and hammer.low < BIN_FLOOR + style.place_release:
            self.hammer.holding = False
            return self._arm.stay(OPEN)
        back = _share(hammer.centre[1], 0.08, 0.23)
        lean = _mix(style.take_lean, style.place_lean, back)
        rotation = self._arm.pose(back * style.place_turn, lean)
        off = target[:2] + style.place - hammer.centre[:2]
        distance = float(np.linalg.norm(off))
        turn = float(np.linalg.norm(self.hand.rotation_error(rotation)))
        missing = max(0.0, distance - 0.02) + 0.1 * max(0.0, turn - 0.2)
        low = min(RIM + style.place_height, BIN_FLOOR + style.place_slope * missing)
        goal = np.array([*hammer.centre[:2] + off, hammer.centre[2] + low - hammer.low])
        if distance > 0.1:
            goal = up_first(hammer.centre, goal, hammer.low, RIM + 0.005)
        return self._arm.bring(hammer.centre, goal, rotation)

    def _is_placed(self, hammer: Hammer) -> bool:
        aside = np.abs(hammer.centre - self._scene.target_bin)[:2].max()
        return bool(aside < 0.13 and hammer.low < BIN_FLOOR + 0.04)


def _share(value: float, start: float, end: float) -> float:
    """Return how far a value has come from start (0) to end (1)."""
    return float(np.clip((value - start) / (end - start), 0.0, 1.0))


def _mix(first: float, second: float, share: float) -> float:
    return first + share * (second - first)
