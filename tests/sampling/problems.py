"""Problems whose answer is known: a Gaussian mixture has its clean prediction in closed form."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from asd_policy.sampling import (
    ChunkNoise,
    CostTable,
    Gain,
    GaussianChain,
    Prior,
    calibrate,
    record_predictions,
)


class Mixture:
    """Three Gaussians in the plane, seen through a chain: a denoiser without a network."""

    def __init__(self, chain: GaussianChain, clip: float | None = None) -> None:
        self.chain, self.clip = chain, clip
        self.means = torch.tensor([[1.0, 0.0], [-0.8, 0.6], [0.0, -1.0]])
        self.variance = 0.03
        self.weights = torch.tensor([0.5, 0.3, 0.2])
        self._signal, self._noise = chain.signal.float(), chain.noise.float()

    def denoise(self, x: Tensor, step: Tensor, chain_index: Tensor) -> Tensor:
        """E[x0 | x_j], row by row; clipped, which leaves a chain of its own to be exact for."""
        signal, noise = self._signal[step][:, None, None], self._noise[step][:, None, None]
        total = signal**2 * self.variance + noise**2
        offset = x[:, None] - signal * self.means
        logits = self.weights.log() - offset.square().sum(-1) / (2 * total[..., 0])
        mean = self.means + signal * self.variance / total * offset
        clean = (logits.softmax(1)[..., None] * mean).sum(1)
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip)


def random_noise(n: int, chain: GaussianChain, shape: tuple[int, ...], seed: int) -> ChunkNoise:
    """Noise for many chains at once, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    k = chain.num_steps
    return ChunkNoise(
        torch.randn(n, *shape, generator=generator),
        torch.randn(n, k, *shape, generator=generator),
        1 - torch.rand(n, k, generator=generator),
        lambda number: random_noise(n, chain, shape, 1_000_003 * (seed + 1) + number),
    )


def prior(chain: GaussianChain, n: int, clip: float | None = None) -> Prior:
    """All that a sampler of the mixture can be told before n chains begin, for better or worse."""
    mixture = Mixture(chain, clip)
    # Every other chain knows a previous chunk, and it is a bad guess.
    guess = torch.tensor([0.7, 0.2])
    return Prior(
        _gain(chain, clip),
        [guess if i % 2 else None for i in range(n)],
        lambda x, step, chain_index: 0.9 * mixture.denoise(x, step, chain_index) + 0.05,
        # So dear that `auto` drafts for some chains, and not so cheap that it drafts without end.
        CostTable((1, 1 << 20), (1.0, 2.0)),
    )


@lru_cache
def _gain(chain: GaussianChain, clip: float | None) -> Gain:
    noise = random_noise(256, chain, (2,), seed=99)
    chains = (Mixture(chain, clip).denoise, chain, noise)
    return calibrate(*chains, record_predictions(*chains), clip)


def chains() -> dict[str, GaussianChain]:
    """Every kind of chain that samplers must be exact on, short enough for thousands of samples."""
    return {
        "cosine": GaussianChain.ddpm(30),
        "linear-large": GaussianChain.ddpm(
            25, schedule="linear", variance="fixed_large", num_train_steps=1000
        ),
        "edm": GaussianChain.edm_ancestral(torch.logspace(1, -1.7, 30)),
    }
