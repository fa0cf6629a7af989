"""What there is to see in Transport: the lid, the trash, the hammer, and the bins.

Two tables with a gap between them. On arm 0's (at -y) stands a bin with the hammer under a lid, on
arm 1's (at +y) the target bin, with the trash in it, and the trash bin.
"""

from dataclasses import dataclass

import numpy as np

from envs.demonstrators.hand import Array, wrap
from envs.robomimic import RobomimicEnv

RIM = 0.951
"""Height of the bins' walls."""
TABLE = 0.8
"""Height of the tables."""
BIN_FLOOR = 0.811
"""Height of the bins' floors."""
LID_DOWN = 0.825
"""Height of the lid's handle when the lid lies on the table."""
START_BIN = np.array([0.2, -0.45])
"""Where the bin of the hammer stands, within 5 mm."""

_INSIDE = 0.13
"""Distance along x and y from a bin's middle within which a point is in the bin."""
_LID_HANDLE = 0.03
"""Half of the length of the lid's handle along which it can be held."""
_HALF_HANDLE = 0.085
"""Half of the length of the hammer's handle along which it can be held."""
_HALF_HAMMER = 0.12
"""Distance of the hammer's ends from the middle of its handle."""
_THICKNESS = 0.015
"""Half of the thickness of the hammer's handle."""


@dataclass(frozen=True)
class Hammer:
    """Where the hammer is.

    Attributes:
        centre: (3,) Middle of its handle.
        axis: (3,) Unit vector along the handle, towards arm 1.
    """

    centre: Array
    axis: Array

    def at(self, along: float) -> Array:
        """Return the point (3,) of the handle, `along` metres from its middle."""
        return self.centre + along * self.axis

    def along(self, position: Array) -> float:
        """Return how far along the handle a position is, from its middle, in metres."""
        return float((position - self.centre) @ self.axis)

    def nearest(self, position: Array) -> Array:
        """Return the point (3,) of the handle nearest to a position that can be held."""
        return self.at(float(np.clip(self.along(position), -_HALF_HANDLE, _HALF_HANDLE)))

    @property
    def turn(self) -> float:
        """Yaw of the handle against the line from arm to arm, in radians."""
        return float(np.arctan2(self.axis[1], self.axis[0])) - np.pi / 2

    @property
    def low(self) -> float:
        """Height of its lowest part in metres, about."""
        return float(self.centre[2] - _HALF_HAMMER * abs(self.axis[2]) - _THICKNESS)

    @property
    def on_floor(self) -> bool:
        """Whether it has fallen off the tables, where no arm gets at it."""
        return bool(self.centre[2] < TABLE - 0.05)

    def inside(self, bin_position: Array) -> bool:
        """Whether all of it is over a bin."""
        ends = np.stack([self.at(-_HALF_HAMMER), self.at(_HALF_HAMMER)])
        return bool(np.abs(ends - bin_position)[:, :2].max() < _INSIDE)


class Scene:
    """The present state of a Transport environment.

    Args:
        env: The environment, after a reset.
    """

    def __init__(self, env: RobomimicEnv) -> None:
        self._data = env.robosuite.sim.data
        self._group = env.robosuite.transport

    @property
    def hammer(self) -> Hammer:
        """Where the hammer is."""
        axis = self._rotation(self._group.payload_body_id)[:, 2]
        return Hammer(self._group.payload_pos, axis if axis[1] >= 0 else -axis)

    @property
    def trash(self) -> Array:
        """The trash's centre (3,)."""
        return np.array(self._group.trash_pos)

    @property
    def trash_turn(self) -> float:
        """Smallest turn of a hand, in radians, with which its fingers meet the trash's faces."""
        axis = self._rotation(self._group.trash_body_id)[:, 0]
        return wrap(float(np.arctan2(axis[1], axis[0])), np.pi / 2)

    @property
    def lid(self) -> Array:
        """Middle of the lid's handle (3,)."""
        return np.array(self._group.lid_handle_pos)

    @property
    def lid_turn(self) -> float:
        """Yaw of the lid in radians."""
        return wrap(float(np.arctan2(self._lid_along[1], self._lid_along[0])) - np.pi / 2, np.pi)

    def lid_nearest(self, position: Array) -> Array:
        """Return the point (3,) of the lid's handle nearest to a position."""
        along = (position - self.lid) @ self._lid_along
        return self.lid + float(np.clip(along, -_LID_HANDLE, _LID_HANDLE)) * self._lid_along

    @property
    def target_bin(self) -> Array:
        """Middle of the target bin's floor (3,)."""
        return np.array(self._group.target_bin_pos)

    @property
    def trash_bin(self) -> Array:
        """Middle of the trash bin's floor (3,)."""
        return np.array(self._group.trash_bin_pos)

    @property
    def lid_is_off(self) -> bool:
        """Whether the lid is out of the hammer's way, and low."""
        aside = np.linalg.norm(self.lid[:2] - START_BIN) > 0.25
        return bool(aside and self.lid[2] < LID_DOWN + 0.03)

    @property
    def trash_is_away(self) -> bool:
        """Whether the trash is in its bin, or out of reach."""
        aside = np.abs(self.trash - self.trash_bin)[:2].max() < _INSIDE
        return bool(aside and self.trash[2] < RIM or self.trash[2] < TABLE - 0.05)

    @property
    def _lid_along(self) -> Array:
        """Direction (3,) of the lid's handle."""
        handle = self._group.lid_handle_geom_ids[0]
        return np.array(self._data.geom_xmat[handle]).reshape(3, 3)[:, 1]

    def _rotation(self, body: int) -> Array:
        return np.array(self._data.body_xmat[body]).reshape(3, 3)
