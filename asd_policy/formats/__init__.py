"""Checkpoints on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from asd_policy.errors import CheckpointError
from asd_policy.formats.gain import load_gain, save_gain
from asd_policy.formats.native import (
    DRAFT_FOLDER,
    Checkpoint,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from asd_policy.formats.reading import read_checkpoint
from asd_policy.policies import Planner, Policy
from asd_policy.policies.runners import Precision
from asd_policy.runtime.graphs import GraphRunner
from asd_policy.sampling import Sampler
from asd_policy.sampling.chain import Posterior

__all__ = [
    "Checkpoint",
    "fingerprint",
    "load_checkpoint",
    "load_gain",
    "load_policy",
    "read_checkpoint",
    "save_checkpoint",
    "save_gain",
]


def load_policy(
    path: str | Path,
    sampler: str | Sampler = "asd",
    device: str | torch.device = "auto",
    gain: bool = True,
    precision: Precision = "default",
    graphs: bool = True,
    posterior: Posterior = "ratio",
    scaler: str | Path | None = None,
) -> Policy:
    """Load a policy that is ready to act; nothing in its files is run.

    Args:
        path: A checkpoint: this library's folder (a gain and a draft network are taken from it
            where it has them), LeRobot's or BESO's folder, a ``.ckpt`` of Diffusion Policy, or a
            ``.pth`` of robomimic.
        sampler: A sampler or its name: ``asd`` (ours), ``asd-paper:24``, ``ddpm``, …
        device: A torch device, or ``auto``: CUDA where there is one, else the CPU.
        gain: Whether to read what ``eval.calibrate`` learned of drafting, if anything.
        precision: How the network computes: ``default`` as PyTorch is set, or ``bfloat16``.
        graphs: Whether to run samplers as CUDA graphs, on a CUDA device.
        posterior: How an imported policy's DDPM rounds: ``ratio`` as today's diffusers, ``table``
            as the one that diffusion_policy and robomimic pin (actions differ by some 1e-5).
        scaler: For BESO alone: a ``.npz`` file with the statistics of the training data.

    Raises:
        CheckpointError: If the checkpoint is missing, incomplete or damaged.
        SamplerError: If the sampler is unknown.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = read_checkpoint(path, posterior, scaler)
    draft = Path(path) / DRAFT_FOLDER
    where = torch.device(device)
    learned = load_gain(path, checkpoint.spec.parametrization.clip) if gain else (None, None)
    planner = Planner(
        checkpoint.spec,
        checkpoint.network,
        checkpoint.normalizers,
        where,
        gain=learned[0],
        expectation=learned[1],
        draft_network=_load_draft(draft, checkpoint) if draft.is_dir() else None,
        runner=GraphRunner() if graphs and where.type == "cuda" else None,
        precision=precision,
    )
    return Policy(planner, sampler)


def _load_draft(path: Path, checkpoint: Checkpoint) -> nn.Module:
    """The network of a draft checkpoint, which must see and predict just what the policy does.

    Raises:
        CheckpointError: If it differs in anything but the network.
    """
    draft = load_checkpoint(path)
    same = replace(draft.spec, network=checkpoint.spec.network) == checkpoint.spec
    for key, normalizer in checkpoint.normalizers.items():
        other = draft.normalizers[key] if same else normalizer
        same = same and torch.equal(other.scale, normalizer.scale)
        same = same and torch.equal(other.offset, normalizer.offset)
    if not same:
        raise CheckpointError(
            f"{path}: a draft must have the policy's own configuration and normalisers, but for "
            "the network; train it on the same data with the same options"
        )
    return draft.network
