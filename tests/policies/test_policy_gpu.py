"""The same policy on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import asd_policy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sampler", ["ddpm", "asd-paper:6", "carry:6", "refine:6"])
def test_plans_on_a_gpu_what_it_plans_on_the_cpu(tiny_folder, sampler, monkeypatch):
    """The noise is the same; 20 steps of rounding stay small beside the actions' range."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    observation = {"keypoint": np.full((5, 9, 2), 200.0), "agent_pos": np.full((5, 2), 300.0)}
    actions = {}
    for device in ("cpu", "cuda"):
        policy = asd_policy.load_policy(tiny_folder, sampler="ddpm", device=device)
        policy = policy.with_sampler(sampler)
        policy.reset(seed=[1, 2, 3, 4, 5])
        actions[device] = policy.act(observation)
        assert policy.device.type == device
    close = np.isclose(actions["cpu"], actions["cuda"], atol=1e-2).all(axis=1)
    # A speculative chain parts where an accept test is as good as tied, which is rare.
    assert close.sum() >= (5 if sampler == "ddpm" else 4)
