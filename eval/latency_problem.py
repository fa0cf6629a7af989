"""One planning to be timed: what goes in, and the clock around it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asd_policy.policies import Planner
from asd_policy.sampling import ChunkNoise, Sampler, SampleResult
from eval.situations import Situations

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Problem:
    """What a planner is asked.

    Attributes:
        history: Raw observations, ``(N, To, observation_dim)``.
        noise: The chunks' noise, on the CPU, as a planner takes it.
        previous: The chunks planned before, on the planner's device, or None.
    """

    history: NDArray[np.float32]
    noise: ChunkNoise
    previous: list[Tensor | None]

    @classmethod
    def of(cls, planner: Planner, situations: Situations, places: Sequence[int]) -> Problem:
        """Plan in the situations at some places; beyond the last they recur, with other noise."""
        n = len(situations)
        steps, shape = planner.chain.num_steps, planner.chunk_shape
        rows = [place % n for place in places]
        blocks = [situations.noise([place % n], steps, shape, place // n) for place in places]
        previous = situations.known(rows)
        return cls(
            situations.history[rows],
            ChunkNoise.stack(blocks),
            [None if chunk is None else chunk.to(planner.device) for chunk in previous],
        )

    def timed(self, planner: Planner, sampler: Sampler) -> tuple[float, SampleResult]:
        """Plan; the seconds from raw history to raw actions, with the device idle at both ends."""
        synchronize(planner.device)
        start = time.perf_counter()
        planned = planner.plan(self.history, self.noise, sampler, self.previous)
        synchronize(planner.device)
        return time.perf_counter() - start, planned.result


def turns(samplers: Sequence[T], place: int) -> list[T]:
    """The samplers from another one on at each place, so that none of them always comes first."""
    first = place % len(samplers) if samplers else 0
    return [*samplers[first:], *samplers[:first]]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
