"""How long ``Policy.act`` takes in the task itself: most calls hand out an action, some plan."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import asd_policy
from asd_policy.policies import Policy
from eval.latency_problem import synchronize
from eval.rollout import MakeEnv


def time_acts(
    checkpoint: str | Path,
    samplers: Sequence[str],
    device: str,
    make_env: MakeEnv,
    first_seed: int,
    max_steps: int,
    steps: int,
) -> dict[str, list[float]]:
    """Follow each sampler through episodes of its own, one sampler after the other.

    The first chunk of each warms up and does not count. Call this where nothing else is running, in
    a process of one thread (`processes.run_apart`).

    Args:
        checkpoint: The policy's folder.
        samplers: Their names.
        device: Where the network runs.
        make_env: Makes the environment.
        first_seed: Seed of the first episode of each sampler; the others follow.
        max_steps: Control steps after which an episode is stopped.
        steps: Control steps to time.

    Returns:
        For each sampler the seconds of `steps` calls of `act`.
    """
    torch.set_num_threads(1)
    loaded = asd_policy.load_policy(checkpoint, device=device)
    warm_up = loaded.spec.action_horizon
    times: dict[str, list[float]] = {}
    env = make_env()
    try:
        total = len(samplers) * (warm_up + steps)
        with tqdm(total=total, desc="acting", unit="step") as progress:
            for sampler in samplers:
                policy = loaded.with_sampler(sampler)
                seconds: list[float] = []
                seed = first_seed
                while len(seconds) < warm_up + steps:
                    observation, _ = env.reset(seed=seed)
                    policy.reset(seed=seed)
                    for _ in range(min(max_steps, warm_up + steps - len(seconds))):
                        action, taken = _timed(policy, observation)
                        seconds.append(taken)
                        progress.update()
                        observation, _, terminated, truncated, info = env.step(action)
                        if terminated or truncated or info["success"]:
                            break
                    seed += 1
                times[sampler] = seconds[warm_up:]
    finally:
        env.close()
    return times


def _timed(policy: Policy, observation: Mapping[str, Any]) -> tuple[NDArray[np.float32], float]:
    synchronize(policy.device)
    start = time.perf_counter()
    action = policy.act(observation)
    synchronize(policy.device)
    return action, time.perf_counter() - start
