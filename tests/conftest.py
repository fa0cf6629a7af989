"""Fixtures that several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asd_policy.formats import Checkpoint, save_checkpoint, save_gain
from asd_policy.policies import Normalizer, ObservationKey, PolicySpec
from asd_policy.policies.expectation import Expectation, fit_expectation
from asd_policy.sampling import Gain


@pytest.fixture(autouse=True)
def _one_thread():
    # Two OpenMP threads on shared cores spin, and a batch may then be split between them.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_checkpoint() -> Checkpoint:
    """A small policy with random weights: two keys, 3-D actions, 20 DDPM steps."""
    spec = PolicySpec(
        task="pusht",
        observations=(ObservationKey("keypoint", (9, 2)), ObservationKey("agent_pos", (2,))),
        action_dim=3,
        action_mode="position",
        action_rotation=None,
        obs_horizon=2,
        pred_horizon=16,
        action_horizon=8,
        first_action=1,
        network={
            "name": "chi_unet",
            "diffusion_step_embed_dim": 16,
            "down_dims": [16, 32],
            "kernel_size": 3,
            "n_groups": 4,
            "cond_predict_scale": True,
        },
        chain={"name": "ddpm", "num_steps": 20},
    )
    torch.manual_seed(0)
    network = spec.build_network().requires_grad_(False).eval()
    normalizers = {
        "keypoint": Normalizer(torch.full((18,), 2 / 512), torch.full((18,), -1.0)),
        "agent_pos": Normalizer(torch.full((2,), 2 / 512), torch.full((2,), -1.0)),
        "action": Normalizer(torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.0, 0.1, -0.2])),
    }
    return Checkpoint(spec, network, normalizers, {"note": "random weights"})


@pytest.fixture
def tiny_folder(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """The small policy on disk."""
    save_checkpoint(tiny_checkpoint, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def tiny_gain() -> Gain:
    """A gain of the right shapes for the small policy."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(48, 48, generator=generator))[0].contiguous()
    slope = 0.3 * torch.rand(20, 48, generator=generator)
    return Gain(basis, slope, 0.1 * torch.rand(21, 20, generator=generator), clip=1.0)


@pytest.fixture
def tiny_expectation() -> Expectation:
    """An expectation of the right shapes for the small policy."""
    generator = torch.Generator().manual_seed(1)
    condition, chunks, predictions = (
        torch.randn(30, size, generator=generator) for size in (40, 48, 48)
    )
    previous = [None if i % 10 == 0 else chunk for i, chunk in enumerate(chunks)]
    return fit_expectation(condition, previous, predictions[:, None], torch.arange(30) // 10)[0]


@pytest.fixture
def calibrated_folder(tiny_folder: Path, tiny_gain: Gain, tiny_expectation: Expectation) -> Path:
    """The small policy with a gain and an expectation beside its weights."""
    save_gain(tiny_gain, tiny_folder, {}, tiny_expectation)
    return tiny_folder
