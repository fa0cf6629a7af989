"""How long planning takes for one robot: every sampler at the same observations, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from asd_policy.policies.policy import Policy
from eval.episodes import Experiment, PlannedChunk
from eval.rollout import MakeEnv

_WARM_UP = 2


@dataclass(frozen=True)
class Latency:
    """Planning time of one sampler.

    Attributes:
        p50: Median, in milliseconds a chunk.
        p95: 95th percentile, in milliseconds a chunk.
        speedup: Median over the chunks of the baseline's time over this sampler's.
    """

    p50: float
    p95: float
    speedup: float


def time_planning(
    experiment: Experiment,
    samplers: Sequence[str],
    make_env: MakeEnv,
    first_seed: int,
    chunks: int,
) -> list[PlannedChunk]:
    """Time every sampler on the same chunks.

    A single environment follows the first sampler's actions through the seeds from `first_seed`
    on, and at each chunk all samplers plan from the same observations with the same noise, in
    turns, so that none of them always comes first. The first chunks warm up and do not count.
    Call this where nothing else is running, in a process of one thread (`processes.run_apart`).

    Args:
        experiment: Task, checkpoint and limits.
        samplers: Their names.
        make_env: Makes the environment.
        first_seed: Seed of the first episode.
        chunks: How many chunks each sampler plans.

    Returns:
        `chunks` records of each sampler, in the order of planning.
    """
    torch.set_num_threads(1)
    loaded = experiment.load_policy()
    policies = {sampler: loaded.with_sampler(sampler) for sampler in samplers}
    env = make_env()
    planned: list[PlannedChunk] = []
    seed = first_seed
    with tqdm(total=_WARM_UP + chunks, desc=f"{experiment.task} planning", unit="chunk") as bar:
        while bar.n < bar.total:
            observation, _ = env.reset(seed=seed)
            for policy in policies.values():
                policy.reset(seed=seed)
            for step in range(experiment.max_steps):
                first = bar.n % len(samplers)
                turns = [*samplers[first:], *samplers[:first]]
                actions = {sampler: policies[sampler].act(observation) for sampler in turns}
                if step % loaded.spec.action_horizon == 0:
                    planned += [_record(policies[sampler], sampler, seed) for sampler in turns]
                    bar.update()
                observation, _, terminated, truncated, info = env.step(actions[samplers[0]])
                if bar.n == bar.total or terminated or truncated or info["success"]:
                    break
            seed += 1
    env.close()
    return planned[_WARM_UP * len(samplers) :]


def latencies(planned: Sequence[PlannedChunk], baseline: str) -> dict[str, Latency]:
    """Summarise planning times.

    Args:
        planned: The records of several samplers on the same chunks.
        baseline: The sampler that the others are compared with, chunk by chunk.
    """
    seconds: dict[str, dict[tuple[int, int], float]] = {}
    for record in planned:
        seconds.setdefault(record.sampler, {})[record.seed, record.chunk] = record.seconds
    return {
        sampler: Latency(
            p50=1e3 * float(np.median(list(times.values()))),
            p95=1e3 * float(np.percentile(list(times.values()), 95)),
            speedup=float(np.median([seconds[baseline][key] / times[key] for key in times])),
        )
        for sampler, times in seconds.items()
    }


def _record(policy: Policy, sampler: str, seed: int) -> PlannedChunk:
    plan = policy.last_plan
    assert plan is not None
    chunk = policy.episode_report().chunks - 1
    return PlannedChunk(sampler, seed, chunk, plan.seconds, plan.calls[0], plan.evaluations[0])
