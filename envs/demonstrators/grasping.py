"""Arms that pick things up: what is between the fingers, and the moves around a grasp."""

import numpy as np
from numpy.typing import NDArray

from envs.demonstrators.hand import Array, Hand, pointing_down
from envs.demonstrators.motion import CLOSE, OPEN, Approach, Manner, Motion
from envs.robomimic import RobomimicEnv

_BETWEEN = 0.035
"""Offset from the grip site, along any of the hand's axes, within which a point is in the hand."""
_LOOSE = 0.007
"""Opening beyond a thing's width up to which the fingers touch it."""
_EMPTY = 0.01
"""Opening short of a thing's width from which on the fingers have closed beside it."""
_STILL = 1e-3
"""Change of the opening in a step from which on the fingers are moving."""
_OPEN = 0.06
"""Opening from which on the fingers are off whatever they held."""
_ARRIVED = 0.008
"""Distance from a grasp, across and along the hand's axis, at which the fingers may close."""
_ARRIVED_TURN = 0.15
"""The same for the hand's rotation, in radians."""
_ASIDE = 0.08
"""Sideways distance from which on an empty hand rises before it goes."""
_RISE = 0.05
"""Height over which a rising hand comes to go sideways."""
_TWISTED, _BENT = 0.9, 3.2
"""Angles of the wrist (joints 5 and 6) beyond which it has gone through its singularity.

From there on it only winds up, until it is stuck; working arms keep to 0.6 and 3.0.
"""
_BACK, _LEANT_OUT = 2.1, 0.65
"""How far back the hand goes to unwind, of the way to where it is free, and how it leans there."""
_STRETCHED = -0.2
"""Angle of the elbow (joint 4) from which on the arm is stretched.

Forces that turn the hand then hold the elbow straight, however hard it is pulled back.
"""

DOWN = np.array([0.0, 0.0, -1.0])


class Grip:
    """One hand and one thing that it may hold.

    Whether it does is read off geometry and the opening of the fingers, but for one bit: fingers on
    their way may be closing or opening.

    Args:
        hand: The hand.
        width: Opening of the fingers, in metres, when they hold the thing.
        point: (3,) The point of the thing that is nearest to the hand and can be held.
    """

    def __init__(self, hand: Hand, width: float, point: Array) -> None:
        self._hand = hand
        self._width = width
        self._opening = hand.opening
        self._still = True
        self.near = self._is_near(point)
        self.holding = self.near and -_EMPTY < self._opening - width < _LOOSE

    def look(self, point: Array) -> None:
        """Notice where the thing (3,) is now, and whether it was lost; call once per step."""
        opening = self._hand.opening
        self._still = abs(opening - self._opening) < _STILL
        self._opening = opening
        self.near = self._is_near(point)
        self.holding &= self.near and opening > self._width - _EMPTY

    @property
    def firm(self) -> bool:
        """Whether the fingers have closed on the thing."""
        return self.holding and self._still and self._opening < self._width + _LOOSE

    @property
    def entangled(self) -> bool:
        """Whether the fingers are still around a thing that is not to be held."""
        return self.near and not self.holding and self._opening < _OPEN

    def _is_near(self, point: Array) -> bool:
        off = self._hand.rotation.T @ (point - self._hand.position)
        return bool(np.abs(off).max() < _BETWEEN)


class Arm:
    """One arm of several, and how it moves.

    Args:
        env: The environment, after a reset.
        index: Which arm.
        facing: Yaw of its hand when nothing asks for another, in radians.
        free: (3,) Where the hand can turn freely.
        tilt: (2,) Error of the hand's roll and pitch.
        manner: How it moves.
        rng: Where the tremor comes from.
    """

    def __init__(
        self,
        env: RobomimicEnv,
        index: int,
        facing: float,
        free: Array,
        tilt: Array,
        manner: Manner,
        rng: np.random.Generator,
    ) -> None:
        self.hand = Hand(env, index)
        self._motion = Motion(self.hand, manner, rng)
        self._facing = facing
        self._free = free
        self._data = env.robosuite.sim.data
        self._joints = env.robosuite.robots[index]._ref_joint_pos_indexes
        self._tilt = tilt

    def pose(self, turn: float, lean: float) -> Array:
        """Return the rotation (3, 3) of a hand pointing down.

        Args:
            turn: Yaw against the usual one, in radians.
            lean: Angle by which the fingers lean, about their closing axis, away from the arm.
        """
        yaw = self._facing + turn
        return pointing_down(yaw, self._tilt - lean * np.array([np.cos(yaw), np.sin(yaw)]))

    def stay(self, grip: float) -> NDArray[np.float32]:
        """Return the action (7,) that keeps the hand where it is."""
        return self._motion.towards(self.hand.position, self.hand.rotation, grip)

    @property
    def wound(self) -> bool:
        """Whether the wrist has wound itself up."""
        twist, bend = self._data.qpos[self._joints][4:6]
        return bool(abs(twist) > _TWISTED or bend > _BENT)

    def unwind(self, clear: float) -> NDArray[np.float32]:
        """Return the action (7,) that leads the open hand to where its wrist unwinds."""
        if abs(self._data.qpos[self._joints][4]) < np.pi / 2:
            return self.go(self._free, self.pose(0.0, 0.0), clear)
        # Beyond the singularity: back to it, with the hand near the arm and leaning away.
        position = self._free * np.array([1.0, _BACK, 1.0])
        return self.go(position, self.pose(0.0, _LEANT_OUT), clear)

    def go(
        self, position: Array, rotation: Array, clear: float, speed: float = 1.0
    ) -> NDArray[np.float32]:
        """Return the action (7,) that moves the open hand to a pose, up before sideways.

        Args:
            position: (3,) Where the hand is to be.
            rotation: (3, 3) How it is to be turned.
            clear: Height in metres at which it may go sideways.
            speed: Share of the manner's speeds.
        """
        off = position - self.hand.position
        target = position.copy()
        if np.linalg.norm(off[:2]) > _ASIDE:
            share = np.clip((self.hand.position[2] - clear) / _RISE + 1.0, 0.0, 1.0)
            target[:2] = self.hand.position[:2] + share * off[:2]
            target[2] = max(position[2], clear + 0.01)
        if self._data.qpos[self._joints][3] > _STRETCHED:
            rotation = self.hand.rotation
        return self._motion.towards(target, rotation, OPEN, speed)

    def reach(
        self,
        grip: Grip,
        point: Array,
        rotation: Array,
        approach: Approach,
        axis: Array,
        clear: float,
    ) -> NDArray[np.float32]:
        """Return the action (7,) that leads to a grasp and, once there, begins to close.

        Args:
            grip: The grip that is to come about; told when the fingers begin to close.
            point: (3,) Where the grip site is to be.
            rotation: (3, 3) How the hand is to be turned.
            approach: How it comes in.
            axis: (3,) Unit vector along which it does.
            clear: Height in metres at which it may go sideways.
        """
        opened = self.hand.opening > _OPEN
        off = rotation.T @ (point - self.hand.position)
        turn = float(np.linalg.norm(self.hand.rotation_error(rotation)))
        close_by = np.linalg.norm(off[:2]) < _ARRIVED and abs(off[2]) < _ARRIVED
        if opened and close_by and turn < _ARRIVED_TURN:
            grip.holding = True
            return self.stay(CLOSE)
        target = point - approach.hover * axis
        if opened:
            target = approach.target(self.hand, point, rotation, axis)
        return self.go(target, rotation, clear)

    def bring(
        self, point: Array, goal: Array, rotation: Array, speed: float = 1.0
    ) -> NDArray[np.float32]:
        """Return the action (7,) that brings a point (3,) of what is held to a goal (3,)."""
        return self._motion.towards(self.hand.position + goal - point, rotation, CLOSE, speed)


def up_first(point: Array, goal: Array, low: float, clear: float) -> Array:
    """Return the goal (3,) of something carried, above the point as long as that is low.

    Args:
        point: (3,) A point of the thing.
        goal: (3,) Where the point is to be.
        low: Height of the thing's lowest part in metres.
        clear: Height of the obstacles in metres.
    """
    share = np.clip((low - clear) / 0.02, 0.0, 1.0)
    return np.array([*(point + share * (goal - point))[:2], goal[2]])
