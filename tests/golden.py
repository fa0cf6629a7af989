"""Checkpoints made by other projects' own code, with golden inputs, noise and outputs.

All of them lie in ``../shared/fixtures``; a few also in ``tests/fixtures``, so that a clone alone
has real ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPOSITORY, SHARED
from torch import Tensor

from asd_policy.formats import Checkpoint
from asd_policy.policies import Planner, Policy
from asd_policy.policies.planner import Planned
from asd_policy.policies.rotation import vector_to_matrix
from asd_policy.sampling import ChunkNoise, parse_sampler

NETWORK, SAMPLE = 1e-5, 5e-6
"""Largest differences allowed: of a network's output, and of normalised samples."""


def fixture(path: str) -> Path:
    """A file or folder of the fixtures; skips the test where it is not to be had."""
    for root in (REPOSITORY / "tests" / "fixtures", SHARED / "fixtures"):
        if (root / path).exists():
            return root / path
    pytest.skip(f"{path} is neither in tests/fixtures nor in {SHARED / 'fixtures'}")


def golden(path: str) -> dict[str, Any]:
    """The arrays of a golden file, as tensors where they are numbers."""
    with np.load(fixture(path)) as file:
        arrays = {name: file[name] for name in file.files}
    return {n: torch.from_numpy(a) if a.dtype.kind in "fiu" else a for n, a in arrays.items()}


def scaler_of(name: str, folder: Path) -> Path:
    """The statistics that BESO's own scaler had, as a user would save them."""
    arrays = golden(f"{name}/golden.npz")
    known = {n.removeprefix("scaler."): a for n, a in arrays.items() if n.startswith("scaler.")}
    numbers = {n: a.numpy() for n, a in known.items() if isinstance(a, torch.Tensor)}
    np.savez(folder / "scaler.npz", **numbers)
    return folder / "scaler.npz"


def injected(initial: Tensor, steps: Tensor) -> ChunkNoise:
    """Noise of the originals' making: ``(N, T, D)``, and ``(99, N, T, D)`` in order of use."""
    steps = steps.transpose(0, 1)
    steps = torch.cat([steps, torch.zeros_like(steps[:, :1])], dim=1)
    return ChunkNoise(initial, steps, torch.ones(steps.shape[:2]))


def plan(checkpoint: Checkpoint, history: Tensor, noise: ChunkNoise) -> Planned:
    """A chunk by sequential DDPM for each history ``(N, To, observation_dim)``."""
    planner = Planner(
        checkpoint.spec, checkpoint.network, checkpoint.normalizers, torch.device("cpu")
    )
    return planner.plan(history.float().numpy(), noise, parse_sampler("ddpm"))


def policy_with(checkpoint: Checkpoint, monkeypatch: Any, initial: Tensor, steps: Tensor) -> Policy:
    """A policy whose episode i draws the noise ``(chunks, N, T, D)`` and ``(chunks, 99, N, …)``."""

    class Injected:
        def __init__(self, seed: int, repeat: int = 0) -> None:
            self.seed = seed

        def chunk(self, index: int, num_steps: int, shape: tuple[int, ...]) -> ChunkNoise:
            row = slice(self.seed, self.seed + 1)
            return injected(initial[index, row], steps[index, :, row])

    monkeypatch.setattr("asd_policy.policies.policy.NoiseStream", Injected)
    planner = Planner(
        checkpoint.spec, checkpoint.network, checkpoint.normalizers, torch.device("cpu")
    )
    policy = Policy(planner, "ddpm")
    policy.reset(seed=list(range(initial.shape[1])))
    return policy


def largest(a: Any, b: Any) -> float:
    """The largest difference."""
    return float((torch.as_tensor(a).double() - torch.as_tensor(b).double()).abs().max())


def pose_difference(a: Any, b: Any) -> float:
    """The same of poses ``(…, 7)``, whose rotations are compared as matrices."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    rotations = largest(vector_to_matrix(a[..., 3:6]), vector_to_matrix(b[..., 3:6]))
    return max(rotations, largest(a[..., :3], b[..., :3]), largest(a[..., 6], b[..., 6]))
