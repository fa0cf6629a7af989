"""Published fast samplers that do not keep DDPM's distribution: the baselines of exact ones."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from asd_policy.errors import SamplerError
from asd_policy.sampling.chain import GaussianChain
from asd_policy.sampling.noise import ChunkNoise
from asd_policy.sampling.result import Denoise, SampleResult


def sample_ddim(
    denoise: Denoise, chain: GaussianChain, noise: ChunkNoise, num_steps: int
) -> SampleResult:
    """Deterministic DDIM (Song et al. 2021, eq. 12 with σ = 0).

    Steps are "leading", as in diffusers with ``set_alpha_to_one`` and no offset: every
    ``(K // num_steps)``-th from the clean end. The first call is then somewhat after the chain's
    first state, on pure noise all the same: for 16 of 100 steps at training step 90, for 60 at 59.

    The noise direction is that of the clipped x̂0, ``(x - signal x̂0) / noise``, so that the next
    state lies between this one and the prediction. diffusers does so with
    ``use_clipped_model_output=True``; its default mixes the clipped x̂0 with the network's own ε,
    which differs wherever the clip binds.

    Args:
        denoise: The model.
        chain: The reverse process, DDPM or EDM; only its ``signal`` and ``noise`` are used.
        noise: Where the chains begin; its ``steps`` and ``uniforms`` are not used.
        num_steps: Network calls, 1 … K.

    Returns:
        The samples ``(N, *D)``; a call commits all steps up to the next one's.

    Raises:
        SamplerError: If ``num_steps`` is not an integer in 1 … K.
    """
    k = chain.num_steps
    _require_integer("DDIM's num_steps", num_steps, k)
    nodes = k - 1 - np.arange(num_steps)[::-1] * (k // num_steps)
    # Pure noise is as wide as unit data would be there: 1 all along a DDPM chain.
    width = (chain.signal**2 + chain.noise**2).sqrt().tolist()
    x = noise.initial * (chain.initial_std * (width[nodes[0]] / width[0]))
    for j, (keep, move) in zip(nodes.tolist(), _transfers(chain, nodes), strict=True):
        x = keep * x + move * _denoise_all(denoise, x, j)
    return _fixed_cost(x, nodes, k)


def sample_dpm_solver(
    denoise: Denoise, chain: GaussianChain, noise: ChunkNoise, num_steps: int
) -> SampleResult:
    """DPM-Solver++(2M), multistep and second-order (Lu et al. 2022, algorithm 2).

    Steps are those of diffusers' ``DPMSolverMultistepScheduler`` by default: ``num_steps + 1``
    equally spaced ("linspace") of which the last is replaced by noise zero, midpoint rule, and a
    last step of first order, which returns the prediction.

    Args:
        denoise: The model.
        chain: The reverse process, DDPM or EDM; only its ``signal`` and ``noise`` are used.
        noise: Where the chains begin; its ``steps`` and ``uniforms`` are not used.
        num_steps: Network calls, 1 … K - 1: with K two of them would fall on one step.

    Returns:
        The samples ``(N, *D)``; a call commits all steps up to the next one's.

    Raises:
        SamplerError: If ``num_steps`` is not an integer in 1 … K - 1.
    """
    k = chain.num_steps
    _require_integer("DPM-Solver++'s num_steps", num_steps, max(1, k - 1))
    nodes = k - 1 - np.linspace(0, k - 1, num_steps + 1).round().astype(np.int64)[:0:-1]
    lambdas = (chain.signal.log() - chain.noise.log())[nodes].tolist()
    x = noise.initial * chain.initial_std
    before = x  # x̂0 at the previous step, once there is one
    for i, (j, (keep, move)) in enumerate(
        zip(nodes.tolist(), _transfers(chain, nodes), strict=True)
    ):
        clean = direction = _denoise_all(denoise, x, j)
        if 0 < i < num_steps - 1:
            # r = h_{i-1} / h_i, D = (1 + 1/(2r)) x̂0_i - 1/(2r) x̂0_{i-1}
            ratio = (lambdas[i] - lambdas[i - 1]) / (lambdas[i + 1] - lambdas[i])
            direction = clean + (clean - before) / (2 * ratio)
        # Data prediction: σ'/σ x + α'(1 - e^{-h}) D is DDIM's step towards D.
        x = keep * x + move * direction
        before = clean
    return _fixed_cost(x, nodes, k)


def sample_paradigms(
    denoise: Denoise,
    chain: GaussianChain,
    noise: ChunkNoise,
    tolerance: float,
    window: int,
) -> SampleResult:
    """ParaDiGMS: Picard iteration in a sliding window (Shih et al. 2023, algorithm 1).

    A round evaluates all states of a window at once and sums their drifts and noises from its first
    state; the window slides up to the first state that moved by more than the tolerance,
    ``‖new - old‖² / D > tolerance² s_j²`` with ``s_j`` the noise of the step into it. That state is
    taken as it is, so that every round makes progress. The chain's last state, whose step has
    ``s = 0``, ends any window that it is in and needs no test. (The published code measures a state
    by the noise of the step out of it, and so spends a last call on a step of its own.)

    Args:
        denoise: The model.
        chain: The reverse process.
        noise: The same as sequential DDPM's, whose path is the iteration's fixed point.
        tolerance: Of one step, in units of its noise; 0.1 in the paper. At 0 it is DDPM, rounded.
        window: Most steps iterated at once.

    Returns:
        The samples ``(N, *D)``, each chain with its own rounds.

    Raises:
        SamplerError: If the window is not an integer from 1 or the tolerance is negative or not
            finite.
    """
    _require_integer("ParaDiGMS's window", window)
    if not (0 <= tolerance < math.inf):
        raise SamplerError(f"ParaDiGMS's tolerance: expected 0 or more, got {tolerance!r}")
    device = noise.initial.device
    n, k = noise.uniforms.shape
    a, b, s = (table.to(device, torch.float32) for table in (chain.a, chain.b, chain.s))
    steps = torch.arange(k, device=device)
    z = noise.steps.flatten(2)
    start = noise.initial.flatten(1) * chain.initial_std
    states = start[:, None].repeat(1, k + 1, 1)
    position = torch.zeros(n, dtype=torch.long, device=device)
    at = np.zeros(n, dtype=np.int64)
    accepted: list[list[int]] = [[] for _ in range(n)]
    evaluations = np.zeros(n, dtype=np.int64)
    while (length := np.minimum(window, k - at)).any():
        ahead = np.arange(k) - at[:, None]
        chains, step = (
            torch.from_numpy(index).to(device, non_blocking=True)
            for index in np.nonzero((ahead >= 0) & (ahead < length[:, None]))
        )
        x = states[chains, step]
        clean = denoise(x.view(-1, *noise.initial.shape[1:]), step, chains).flatten(1)
        moves = torch.zeros_like(z)
        moves[chains, step] = (
            (a[step] - 1)[:, None] * x + b[step, None] * clean + s[step, None] * z[chains, step]
        )
        # Beyond the window nothing moves: its last state is where the steps after it begin.
        new = start[:, None] + moves.cumsum(1)
        settled = (new - states[:, 1:]).square().mean(2) <= (tolerance * s) ** 2
        reached = (settled | (steps < position[:, None])).long().cumprod(1).sum(1) + 1
        states[:, 1:] = new
        position = torch.minimum(reached, (position + window).clamp(max=k))
        start = states[torch.arange(n, device=device), position]
        evaluations += length
        before, at = at, position.cpu().numpy()
        for index in np.flatnonzero(length):
            accepted[index].append(int(at[index] - before[index]))
    calls = [len(committed) for committed in accepted]
    return SampleResult(start.view_as(noise.initial), calls, evaluations.tolist(), accepted)


def _transfers(chain: GaussianChain, nodes: np.ndarray) -> list[tuple[float, float]]:
    """Weights of x and of x̂0 in ``x' = signal' x̂0 + noise' (x - signal x̂0) / noise``.

    One pair per node, to the next node or, from the last, to the clean sample (signal 1, noise 0).
    """
    levels = [*zip(chain.signal[nodes].tolist(), chain.noise[nodes].tolist(), strict=True)]
    return [
        (noise_to / noise, signal_to - noise_to / noise * signal)
        for (signal, noise), (signal_to, noise_to) in pairwise([*levels, (1.0, 0.0)])
    ]


def _denoise_all(denoise: Denoise, x: Tensor, j: int) -> Tensor:
    """x̂0 of all chains ``(N, *D)`` at one step."""
    chains = torch.arange(len(x), device=x.device)
    return denoise(x, torch.full_like(chains, j), chains)


def _fixed_cost(x: Tensor, nodes: np.ndarray, num_steps: int) -> SampleResult:
    """Samples of which each cost one call per node; the calls commit all K steps."""
    n = len(x)
    committed = np.diff([0, *nodes[1:], num_steps]).tolist()
    return SampleResult(x, [len(nodes)] * n, [len(nodes)] * n, [[*committed] for _ in range(n)])


def _require_integer(name: str, value: int, most: int | None = None) -> None:
    if not isinstance(value, int) or value < 1 or (most is not None and value > most):
        limits = "of 1 or more" if most is None else f"between 1 and {most}"
        raise SamplerError(f"{name}: expected an integer {limits}, got {value!r}")
