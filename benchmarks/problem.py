"""Chunks to plan outside of a control loop: what a policy saw in episodes of its own."""

from __future__ import annotations

from dataclasses import dataclass

import asd_policy
import envs
from asd_policy.policies import Planner
from asd_policy.sampling import ChunkNoise
from eval.environments import env_maker
from eval.situations import Situations, record


@dataclass(frozen=True, eq=False)
class Problem:
    """A planner, situations to plan in, and the noise to plan with."""

    planner: Planner
    situations: Situations
    noise: ChunkNoise

    @classmethod
    def of(cls, checkpoint: str, first_seed: int, chunks: int) -> Problem:
        """Follow a checkpoint's policy through episodes from a seed on."""
        policy = asd_policy.load_policy(checkpoint, device="cpu")
        limit = envs.spec(policy.spec.task).max_episode_steps
        situations = record(policy, env_maker(policy.spec), first_seed, chunks, limit)
        planner, rows = policy.planner, range(len(situations))
        noise = situations.noise(rows, planner.chain.num_steps, planner.chunk_shape, repeat=1)
        return cls(planner, situations, noise)
