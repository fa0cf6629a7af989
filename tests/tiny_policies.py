"""Small policies with random weights, whose episodes take a fraction of a second."""

from __future__ import annotations

from pathlib import Path

import torch

import envs
from asd_policy.formats import Checkpoint, save_checkpoint
from asd_policy.policies import Normalizer, ObservationKey, PolicySpec

NUM_STEPS = 10


def save_tiny_policy(task: str, folder: Path, scale: float, offset: float) -> Path:
    """Write a policy whose observations and actions are normalised by ``scale * x + offset``."""
    known = envs.spec(task)
    spec = PolicySpec(
        task=task,
        observations=tuple(ObservationKey(key, shape) for key, shape in known.observations),
        action_dim=known.action_dim,
        action_mode=known.action_modes[0],
        action_rotation=None,
        obs_horizon=2,
        pred_horizon=16,
        action_horizon=8,
        first_action=1,
        network={
            "name": "chi_unet",
            "diffusion_step_embed_dim": 8,
            "down_dims": [8, 16],
            "kernel_size": 3,
            "n_groups": 4,
            "cond_predict_scale": True,
        },
        chain={"name": "ddpm", "num_steps": NUM_STEPS},
    )
    normalizers = {
        key: Normalizer(torch.full((size,), scale), torch.full((size,), offset))
        for key, size in spec.normalizer_sizes.items()
    }
    torch.manual_seed(0)
    save_checkpoint(Checkpoint(spec, spec.build_network().eval(), normalizers, {}), folder)
    return folder
