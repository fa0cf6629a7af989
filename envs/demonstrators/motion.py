"""How a demonstrator moves: smooth commands towards poses that draw nearer as the hand aligns.

A demonstrator that steers by fields and not by waypoints answers to what it sees: the hand sinks as
it centres itself over a grasp, and rises again if it is pushed away. What it does next can then be
read off one observation, which is all that a policy has. Pauses alone cannot: people stop to look.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from envs.demonstrators.hand import Array, Hand, limit

OPEN, CLOSE = -1.0, 1.0

_SLEW = 0.3
"""Largest change of a command from one step to the next."""
_STEADY = 0.05
"""Distance in metres from which on the tremor fades."""
_BETWEEN_PAUSES = 120.0
"""Control steps between two pauses, on average: six seconds."""
_LONGEST_PAUSE = 8
"""Control steps of the longest pause: 0.4 seconds; the shortest has two."""
_LONGEST_EPISODE = 700


@dataclass(frozen=True)
class Pauses:
    """When a person stops to look, or slows down if it is for two or three steps only.

    Attributes:
        spans: Of each pause, its first control step and the first after it.
    """

    spans: tuple[tuple[int, int], ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Pauses":
        """Draw the pauses of an episode: a Poisson process, so that some have none."""
        spans, step = [], 0
        while (step := step + 1 + int(rng.exponential(_BETWEEN_PAUSES))) < _LONGEST_EPISODE:
            first, step = step, step + int(rng.integers(2, _LONGEST_PAUSE + 1))
            spans.append((first, step))
        return cls(tuple(spans))

    def at(self, step: int) -> bool:
        """Return whether the hand pauses at a control step, counted from 0."""
        return any(first <= step < end for first, end in self.spans)


@dataclass(frozen=True)
class Manner:
    """How a person moves this time.

    Attributes:
        speed: Largest translation command (1 is about 0.3 m/s).
        turn_speed: Largest rotation command.
        gain: Servo gain of translations: high brakes late, low early.
        turn_gain: Servo gain of rotations.
        tremor: Standard deviation of the translation commands' slow noise.
        pauses: When it stops to look.
    """

    speed: float
    turn_speed: float
    gain: float
    turn_gain: float
    tremor: float
    pauses: Pauses

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Manner":
        """Draw a manner."""
        return cls(
            speed=rng.uniform(0.6, 1.0),
            turn_speed=rng.uniform(0.35, 0.6),
            gain=rng.uniform(1.3, 2.0),
            turn_gain=rng.uniform(1.0, 1.4),
            tremor=rng.uniform(0.0, 0.04),
            pauses=Pauses.draw(rng),
        )


class Motion:
    """Steers one hand.

    Args:
        hand: The hand.
        manner: How it moves.
        rng: Where the tremor comes from.
    """

    def __init__(self, hand: Hand, manner: Manner, rng: np.random.Generator) -> None:
        self.hand = hand
        self._manner = manner
        self._rng = rng
        self._command = np.zeros(6)
        self._tremor = np.zeros(3)
        self._step = 0

    def towards(
        self, position: Array, rotation: Array, grip: float, speed: float = 1.0
    ) -> NDArray[np.float32]:
        """Return the action (7,) of one arm that moves its hand to a pose, once per step.

        Args:
            position: (3,) Where the grip site is to be.
            rotation: (3, 3) How the hand is to be turned.
            grip: `OPEN` or `CLOSE`.
            speed: Share of the manner's speeds.
        """
        manner, hand = self._manner, self.hand
        noise = self._rng.normal(size=3)
        self._tremor = 0.8 * self._tremor + 0.6 * manner.tremor * noise
        translation = hand.translation_to(position, manner.gain, speed * manner.speed)
        far = float(np.linalg.norm(position - hand.position)) / _STEADY
        translation = translation + self._tremor * min(1.0, far)
        turn = hand.rotation_to(rotation, manner.turn_gain, speed * manner.turn_speed)
        command = np.concatenate([translation, turn])
        if manner.pauses.at(self._step):
            command = np.zeros(6)
        self._step += 1
        self._command = self._command + np.clip(command - self._command, -_SLEW, _SLEW)
        return np.array([*self._command, grip], dtype=np.float32).clip(-1.0, 1.0)


@dataclass(frozen=True)
class Approach:
    """A field that leads the hand to a grasp along an axis.

    Attributes:
        hover: Distance from the grasp, along the axis, at which the hand comes in.
        slope: Metres of distance kept for each metre of misalignment.
        tolerance: Misalignment in metres that does not count.
        turn_tolerance: Misalignment in radians that does not count.
    """

    hover: float
    slope: float
    tolerance: float = 0.005
    turn_tolerance: float = 0.08

    def target(
        self, hand: Hand, position: Array, rotation: Array, axis: Array | None = None
    ) -> Array:
        """Return where the hand is to go now (3,), to grasp at a pose.

        Args:
            hand: The hand.
            position: (3,) Where the grip site is to be.
            rotation: (3, 3) How the hand is to be turned.
            axis: (3,) Unit vector along which it is to come in; None for the pose's z axis.
        """
        axis = rotation[:, 2] if axis is None else axis
        off = position - hand.position
        lateral = float(np.linalg.norm(off - (off @ axis) * axis))
        turn = float(np.linalg.norm(hand.rotation_error(rotation)))
        misalignment = max(0.0, lateral - self.tolerance) + 0.1 * max(
            0.0, turn - self.turn_tolerance
        )
        return position - min(self.hover, self.slope * misalignment) * axis


def carried(
    hand: Hand, point: Array, rotation: Array, goal: Array, goal_rotation: Array, most: float = 0.35
) -> tuple[Array, Array]:
    """Return the pose of the hand that brings what it holds to a pose, or nearer to it.

    Args:
        hand: The hand that holds it.
        point: (3,) A point of the held object.
        rotation: (3, 3) The object's rotation.
        goal: Where the point is to be.
        goal_rotation: How the object is to be turned.
        most: Largest turn to ask for at once, in radians.
    """
    turn = limit(Rotation.from_matrix(goal_rotation @ rotation.T).as_rotvec(), most)
    step = Rotation.from_rotvec(turn).as_matrix()
    return goal + step @ (hand.position - point), step @ hand.rotation
