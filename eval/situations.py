"""Situations to plan in: what a policy saw at each chunk of some episodes of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from asd_policy.policies.policy import Plan, Policy, begun_with
from asd_policy.policies.spec import PolicySpec
from asd_policy.sampling import ChunkNoise, NoiseStream
from eval.errors import EvaluationError

if TYPE_CHECKING:
    # For annotations alone: situations are read where no simulator is installed, too.
    import gymnasium

    from eval.rollout import MakeEnv

RECORDED_WITH = "refine:24"
"""Exact, quick, and in need of no calibration."""


@dataclass(frozen=True, eq=False)
class Situations:
    """N situations, in the order in which they came.

    Attributes:
        history: Raw observations, ``(N, To, observation_dim)`` float32.
        previous: The chunk planned before each, normalised and shifted to now, ``(N, Tp,
            planned_dim)``; NaN where an episode begins.
        seed: Seed of each one's episode, ``(N,)`` int64.
        chunk: Index of the chunk in its episode, ``(N,)`` int64.
        begun: What each one's chain begins with in place of noise, ``(N, places, planned_dim)``,
            NaN where it begins with noise; of no places but of policies whose window grows.
    """

    history: NDArray[np.float32]
    previous: NDArray[np.float32]
    seed: NDArray[np.int64]
    chunk: NDArray[np.int64]
    begun: NDArray[np.float32]

    def __len__(self) -> int:
        """N."""
        return len(self.history)

    def known(self, rows: Sequence[int]) -> list[Tensor | None]:
        """The previous chunks of some situations, as a planner takes them."""
        return [torch.from_numpy(self.previous[row]) if self.chunk[row] else None for row in rows]

    def noise(
        self, rows: Sequence[int], num_steps: int, shape: Sequence[int], repeat: int = 0
    ) -> ChunkNoise:
        """The noise that the policy would plan with in some situations."""
        noise = ChunkNoise.stack(
            [
                NoiseStream(int(self.seed[row]), repeat).chunk(
                    int(self.chunk[row]), num_steps, shape
                )
                for row in rows
            ]
        )
        begun = [torch.from_numpy(self.begun[row]) for row in rows]
        return begun_with(noise, [each[~each.isnan().any(1)] for each in begun])

    def save(self, path: Path) -> None:
        """Write them as safetensors, for a machine without the simulator."""
        save_file({name: torch.from_numpy(value) for name, value in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> Situations:
        """Read what ``save`` wrote.

        Raises:
            EvaluationError: If the file is not that.
        """
        try:
            found = {name: tensor.numpy() for name, tensor in load_file(path).items()}
            if "begun" not in found and "previous" in found:  # older files, of other policies
                found["begun"] = found["previous"][:, :0]
            return cls(**found)
        except (OSError, SafetensorError, TypeError) as error:
            raise EvaluationError(f"{path}: not a file of situations: {error}") from error


def record(
    policy: Policy, make_env: MakeEnv, first_seed: int, count: int, max_steps: int
) -> Situations:
    """Follow a policy through episodes, with an exact sampler, until it has planned often enough.

    Args:
        policy: The policy; its own episodes are left alone.
        make_env: Makes the environment.
        first_seed: Seed of the first episode; the others follow.
        count: How many situations.
        max_steps: Control steps after which an episode is stopped.
    """
    policy = policy.with_sampler(RECORDED_WITH)
    spec = policy.spec
    plans: list[tuple[int, int, Plan]] = []
    env = make_env()
    try:
        with tqdm(total=count, desc=f"{spec.task} situations", unit="chunk") as progress:
            seed = first_seed
            while len(plans) < count:
                for chunk, plan in enumerate(_episode(policy, env, seed, max_steps)):
                    plans.append((seed, chunk, plan))
                    progress.update()
                    if len(plans) == count:
                        break
                seed += 1
    finally:
        env.close()
    unknown = np.full(policy.planner.chunk_shape, np.nan, np.float32)
    previous = [plan.previous[0] for _, _, plan in plans]
    return Situations(
        np.concatenate([plan.history for _, _, plan in plans]),
        np.stack([unknown if chunk is None else chunk.cpu().numpy() for chunk in previous]),
        np.array([seed for seed, _, _ in plans]),
        np.array([chunk for _, chunk, _ in plans]),
        _padded([plan.begun[0] for _, _, plan in plans], spec),
    )


def _padded(begun: Sequence[Tensor], spec: PolicySpec) -> NDArray[np.float32]:
    places = spec.obs_horizon - 1 if spec.context == "growing" else 0
    padded = np.full((len(begun), places, spec.planned_dim), np.nan, np.float32)
    for row, actions in zip(padded, begun, strict=True):
        row[: len(actions)] = actions.numpy()
    return padded


def _episode(policy: Policy, env: gymnasium.Env, seed: int, max_steps: int) -> Iterator[Plan]:
    """The plans of one episode."""
    observation, _ = env.reset(seed=seed)
    policy.reset(seed=seed)
    for step in range(max_steps):
        action = policy.act(observation)
        if step % policy.spec.action_horizon == 0:
            assert policy.last_plan is not None
            yield policy.last_plan
        observation, _, terminated, truncated, info = env.step(action)
        if terminated or truncated or info["success"]:
            return
