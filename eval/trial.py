"""Whether samplers can run at all: better said at once than after hours of episodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import numpy as np

from asd_policy.errors import PlanningError, SamplerError
from asd_policy.policies import Planner
from asd_policy.sampling import ChunkNoise, NoiseStream, Sequential, parse_sampler
from eval.errors import RequestError


def try_samplers(planner: Planner, samplers: Iterable[str]) -> None:
    """Plan one chunk with each sampler, at an observation of zeros.

    Args:
        planner: The policy's.
        samplers: Their names.

    Raises:
        RequestError: If one lacks something.
    """
    spec = planner.spec
    history = np.zeros((1, spec.obs_horizon, spec.observation_dim), np.float32)
    block = NoiseStream(0).chunk(0, planner.chain.num_steps, planner.chunk_shape)
    for name in samplers:
        sampler = parse_sampler(name)
        if sampler == Sequential():
            continue  # lacks nothing, and takes longest
        try:
            # Zeros may be far from all that the policy knows: what it plans there does not matter.
            with contextlib.suppress(PlanningError):
                planner.plan(history, ChunkNoise.stack([block]), sampler)
        except SamplerError as error:
            raise RequestError(
                f"sampler: {name} cannot run on this {spec.task} policy: {error}; mend that, or "
                "leave the sampler out"
            ) from error
