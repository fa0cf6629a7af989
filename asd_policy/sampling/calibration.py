"""Calibration: run a model along its chain once, and learn how to draft for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from asd_policy.sampling.chain import GaussianChain
from asd_policy.sampling.gain import Gain, fit_gain, typical_error
from asd_policy.sampling.noise import ChunkNoise
from asd_policy.sampling.prior import Prior
from asd_policy.sampling.result import Denoise
from asd_policy.sampling.samplers import Speculative
from asd_policy.sampling.sequential import sample_sequential
from asd_policy.sampling.speculative import SpeculativeState

_PROBE = Speculative("gain", 48, warm_start=True)
_LEAST = 8
"""Visits of a step from which their error is believed."""


def record_predictions(
    denoise: Denoise,
    chain: GaussianChain,
    noise: ChunkNoise,
    batch: int = 64,
    on_progress: Callable[[int], None] = lambda chains: None,
) -> Tensor:
    """Run N sequential chains, and keep what the model says along them.

    Args:
        denoise: The model; its chain indices are those of the noise.
        chain: The reverse process.
        noise: The randomness of N chains.
        batch: Chains run together.
        on_progress: Called with the number of chains finished.

    Returns:
        x̂0 along the chains, ``(N, K, D)``.
    """
    predictions = torch.zeros_like(noise.steps.flatten(2))

    def recorded(x: Tensor, step: Tensor, chain_index: Tensor) -> Tensor:
        clean = denoise(x, step, chain_index)
        predictions[chain_index, step] = clean.flatten(1)
        return clean

    for block in _blocks(len(predictions), batch):
        sample_sequential(_from(recorded, block.start), chain, noise[block.start : block.stop])
        on_progress(len(block))
    return predictions


def calibrate(
    denoise: Denoise,
    chain: GaussianChain,
    noise: ChunkNoise,
    predictions: Tensor,
    clip: float | None,
    previous: Sequence[Tensor | None] | None = None,
    batch: int = 64,
    on_progress: Callable[[int], None] = lambda chains: None,
) -> Gain:
    """Fit a gain to N sequential chains, then measure how far drafts made with it are off.

    Args:
        denoise: The model; its chain indices are those of the noise.
        chain: The reverse process.
        noise: The randomness of N chains, 16 or more.
        predictions: What ``record_predictions`` made of them, ``(N, K, D)``.
        clip: The model's own bound on x̂0.
        previous: For each chain the prediction that is known before it begins, or None.
        batch: Chains run together.
        on_progress: Called with the number of chains finished.

    Returns:
        The gain with all its errors.
    """
    k, size = predictions.shape[1:]
    known = None
    if previous is not None:
        unknown = noise.steps.new_full((size,), math.nan)
        known = torch.stack([unknown if p is None else p.flatten() for p in previous])
    gain = fit_gain(chain, predictions, noise.steps.flatten(2), clip, known)
    missed = list[Tensor]()
    for block in _blocks(len(predictions), batch):
        prior = Prior(gain, None if previous is None else previous[block.start : block.stop])
        part = noise[block.start : block.stop]
        state = SpeculativeState(chain, _PROBE, prior, len(block), part.initial.device)
        state.begin(part, *prior.known(part.initial))
        missed += _probe(_from(denoise, block.start), chain, state)
        on_progress(len(block))
    error = torch.cat(missed)
    believed = (error.isfinite().sum(0) >= _LEAST).numpy()
    if not believed.any():
        return gain
    steps = np.arange(k)
    gap = torch.where(chain.s > 0, chain.b / chain.s, 0.0)
    measured = typical_error(error, gap).numpy()[believed]
    revisit = torch.from_numpy(np.interp(steps, steps[believed], measured)).to(gain.error)
    visited = torch.ones(k, k, dtype=torch.bool, device=revisit.device).tril()
    errors = torch.cat([gain.error[:1], torch.where(visited, revisit, gain.error[1:])])
    return replace(gain, error=errors)


def _blocks(chains: int, batch: int) -> list[range]:
    return [range(at, min(at + batch, chains)) for at in range(0, chains, batch)]


def _from(denoise: Denoise, first: int) -> Denoise:
    """The model of the chains from ``first`` on."""

    def of_block(x: Tensor, step: Tensor, chain_index: Tensor) -> Tensor:
        return denoise(x, step, chain_index + first)

    return of_block


def _probe(denoise: Denoise, chain: GaussianChain, state: SpeculativeState) -> list[Tensor]:
    """Run chains to their ends; the errors of drafts that visit a step again.

    Returns:
        For every round ``(chains, K)``, on the CPU, NaN where no such draft was tested.
    """
    gap = torch.where(chain.s > 0, chain.b / chain.s, 1.0)
    rounds = []
    position, length = state.plan()
    while length.any():
        width = int(length.max())
        last = state.drafts.last.cpu().numpy()
        rows = np.flatnonzero(np.arange(width) < length[:, None])
        state.round(denoise, width, torch.from_numpy(rows).to(state.x.device))
        following, next_length = state.plan()
        step = position[:, None] + np.arange(width)
        # A window's last row is no draft, and rows after a rejection were never put to the test.
        tested = (step < following[:, None]) & (np.arange(width) < length[:, None] - 1)
        chains, columns = np.nonzero(tested & (step <= last[:, None]))
        visited = torch.from_numpy(step[chains, columns])
        error = torch.full((len(position), chain.num_steps), math.nan)
        error[chains, visited] = (
            state.difference.norm(dim=-1).cpu()[chains, columns] / gap[visited].float()
        )
        rounds.append(error)
        position, length = following, next_length
    return rounds
