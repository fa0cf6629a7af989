"""How two people go about Transport: the numbers that differ from episode to episode."""

from dataclasses import dataclass

import numpy as np

from envs.demonstrators.hand import Array
from envs.demonstrators.motion import Approach, Manner

_HANDOVER = np.array([0.0, -0.005, 1.04])
"""Where the hammer changes hands, within a few centimetres."""


@dataclass(frozen=True)
class TransportStyle:
    """How two people move the hammer this time; lengths in metres, angles in radians.

    "Along" the hammer's handle counts from its middle, towards arm 1. A "lean" is the angle by
    which the fingers lean, about their closing axis, away from the arm; straight down over the bins
    the wrist is at a singularity.

    Attributes:
        manners: How arm 0 and arm 1 move.
        tilts: (2, 2) Errors of roll and pitch of hand 0 and hand 1.
        rests: (2, 3) Where the hands go when there is nothing to do.
        rest_lean: Lean of the hands there.
        lid_approach: How hand 0 comes to the lid.
        lid_grasp: (2,) Where the lid's handle is held, along it and up.
        lid_lean: Lean of hand 0 at the lid.
        lid_height: Height of the lid's handle when it is carried.
        park: (2,) Where the lid is put down.
        park_turn: Yaw of the lid there.
        park_slope: Metres of height kept for each metre from there.
        pick_approach: How hand 0 comes to the hammer.
        pick_along: Where hand 0 holds the handle, along it.
        pick_up: The same, up.
        pick_lean: Lean of hand 0 there.
        handover: (3,) Where the middle of the handle is held out.
        offer_lean: Lean of hand 0 there.
        ready: (3,) Where hand 1 waits.
        take_approach: How hand 1 comes to the hammer.
        take_along: Where hand 1 holds the handle, along it.
        take_lean: Lean of hand 1 there.
        trash_approach: How hand 1 comes to the trash.
        trash_grasp: (3,) Where the trash is held, from its centre.
        trash_lean: Lean of hand 1 at the trash.
        trash_height: Height at which the trash is carried.
        trash_place: (2,) Where it is dropped, from the middle of its bin.
        trash_release: Height at which it is dropped.
        place: (2,) Where the middle of the handle goes, from the middle of the target bin.
        place_turn: Yaw of hand 1 there.
        place_lean: Lean of hand 1 there.
        place_height: Height over the bin's walls at which the hammer is carried.
        place_slope: Metres of height kept for each metre of misalignment.
        place_release: Height over the bin's floor at which it is let go.
    """

    manners: tuple[Manner, Manner]
    tilts: Array
    rests: Array
    rest_lean: float
    lid_approach: Approach
    lid_grasp: Array
    lid_lean: float
    lid_height: float
    park: Array
    park_turn: float
    park_slope: float
    pick_approach: Approach
    pick_along: float
    pick_up: float
    pick_lean: float
    handover: Array
    offer_lean: float
    ready: Array
    take_approach: Approach
    take_along: float
    take_lean: float
    trash_approach: Approach
    trash_grasp: Array
    trash_lean: float
    trash_height: float
    trash_place: Array
    trash_release: float
    place: Array
    place_turn: float
    place_lean: float
    place_height: float
    place_slope: float
    place_release: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "TransportStyle":
        """Draw a style."""
        return cls(
            manners=(Manner.draw(rng), Manner.draw(rng)),
            tilts=rng.normal(0.0, 0.02, (2, 2)).clip(-0.04, 0.04),
            rests=np.array([[0.0, -0.36, 1.06], [0.0, 0.36, 1.06]])
            + rng.uniform(-0.03, 0.03, (2, 3)),
            rest_lean=rng.uniform(-0.4, -0.3),
            lid_approach=Approach(hover=rng.uniform(0.06, 0.12), slope=rng.uniform(3.0, 7.0)),
            lid_grasp=np.array([rng.uniform(-0.012, 0.012), rng.uniform(-0.002, 0.005)]),
            lid_lean=rng.uniform(-0.5, -0.38),
            lid_height=rng.uniform(1.03, 1.07),
            park=np.array([rng.uniform(-0.23, -0.165), rng.uniform(-0.475, -0.425)]),
            park_turn=rng.uniform(-0.12, 0.12),
            park_slope=rng.uniform(5.0, 9.0),
            pick_approach=Approach(hover=rng.uniform(0.19, 0.23), slope=rng.uniform(4.0, 8.0)),
            pick_along=rng.uniform(-0.062, -0.048),
            pick_up=rng.uniform(-0.001, 0.005),
            pick_lean=rng.uniform(-0.4, -0.3),
            handover=_HANDOVER + rng.uniform(-1.0, 1.0, 3) * np.array([0.03, 0.015, 0.025]),
            offer_lean=rng.uniform(0.02, 0.12),
            ready=_HANDOVER + np.array([0.0, 0.17, 0.1]) + rng.uniform(-0.02, 0.02, 3),
            take_approach=Approach(hover=rng.uniform(0.07, 0.11), slope=rng.uniform(3.0, 6.0)),
            take_along=rng.uniform(0.058, 0.072),
            take_lean=rng.uniform(0.2, 0.3),
            trash_approach=Approach(hover=rng.uniform(0.18, 0.22), slope=rng.uniform(4.0, 8.0)),
            trash_grasp=np.array([*rng.uniform(-0.005, 0.005, 2), rng.uniform(-0.002, 0.006)]),
            trash_lean=rng.uniform(-0.5, -0.38),
            trash_height=rng.uniform(1.0, 1.05),
            trash_place=rng.uniform(-0.03, 0.03, 2),
            trash_release=rng.uniform(0.85, 0.92),
            place=rng.uniform(-0.01, 0.01, 2),
            place_turn=np.pi / 4 + rng.uniform(-0.12, 0.12),
            place_lean=rng.uniform(-0.37, -0.27),
            place_height=rng.uniform(0.03, 0.06),
            place_slope=rng.uniform(4.0, 7.0),
            place_release=rng.uniform(0.005, 0.02),
        )
