"""The noise that a sampler's chains can be said to have had, and whether it is white.

Of a chain ``x_{j+1} = a x_j + b x̂0(x_j) + s e_j`` the innovations ``e_j`` are independent standard
normals if, and only if, the chain is the sequential one. Errors that two samples of x_K hardly
show are plain here, above all along ``D``, where a draft and its target differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from problems import Mixture, prior, random_noise
from scipy.stats import kstest, norm
from torch import Tensor

from asd_policy.sampling import GaussianChain, sample
from asd_policy.sampling.speculative import SpeculativeState


@dataclass(frozen=True)
class Innovations:
    """Of N chains, at all steps with noise.

    Attributes:
        noise: e, ``(N, J, D)``.
        along: Its part along D, ``(N, J)``; NaN where nothing was verified.
        distance: ‖D‖ there, ``(N, J)``.
        first: Where the step was its window's first, ``(N, J)``.
        last: Where it was its window's last, ``(N, J)``.
        calls: Network calls of each chain.
    """

    noise: Tensor
    along: Tensor
    distance: Tensor
    first: Tensor
    last: Tensor
    calls: list[int]

    def pvalue(self) -> float:
        """The least of several tests' p-values, times their number (Bonferroni)."""
        verified = self.along.isfinite() & ~self.last
        along, distance = self.along[verified].numpy(), self.distance[verified].numpy()
        product = (self.noise[:, 1:] * self.noise[:, :-1]).numpy()
        scores = [
            _score(self.noise.mean(), self.noise.numel()),
            _score(self.noise.square().mean() - 1, self.noise.numel() / 2),
            _score(self.noise[self.last].square().mean() - 1, self.last.sum()),
            _score(product.mean(), product.size),
            _score(self.noise[self.first].square().mean() - 1, self.first.sum()),
        ]
        begun = self.along[verified & self.first].numpy()
        if len(begun):
            scores += [
                _score(begun.mean(), len(begun)),
                _score((begun**2).mean() - 1, len(begun) / 2),
            ]
        # Windows of one step verify nothing.
        if len(along):
            scores += [
                _score(along.mean(), len(along)),
                _score((along**2).mean() - 1, len(along) / 2),
                _score((along * distance).sum(), 1 / (distance**2).sum()),
                _score(((along**2 - 1) * distance).sum(), 1 / (2 * (distance**2).sum())),
            ]
        values = list(2 * norm.sf(np.abs(scores)))
        if len(along):
            values.append(kstest(along, "norm").pvalue)
        return float(min(values) * len(values))


def innovations(
    chain: GaussianChain, sampler: str, n: int, seed: int, clip: float | None = None
) -> Innovations:
    """Sample the mixture, and take apart what was committed, round by round."""
    rounds: list[tuple[Tensor, ...]] = []
    honest = SpeculativeState.round

    def told(state: SpeculativeState, *arguments: object) -> None:
        position, learn = state.position, state.drafts.learn

        def learned(at: Tensor, states: Tensor, clean: Tensor, *rest: Tensor) -> None:
            rounds.append((position, states, clean, *rest[:2], state.difference))
            learn(at, states, clean, *rest)

        state.drafts.learn = learned  # type: ignore[method-assign]
        honest(state, *arguments)  # type: ignore[arg-type]
        del state.drafts.learn
        rounds[-1] += (state.x,)

    SpeculativeState.round = told  # type: ignore[method-assign]
    try:
        result = sample(
            Mixture(chain, clip).denoise,
            chain,
            random_noise(n, chain, (2,), seed),
            sampler,
            prior(chain, n, clip),
        )
    finally:
        SpeculativeState.round = honest  # type: ignore[method-assign]
    steps = int((chain.s > 0).sum())
    noise = torch.full((n, steps, 2), torch.nan, dtype=torch.double)
    along, distance = torch.full((2, n, steps), torch.nan, dtype=torch.double)
    first, last = torch.zeros(2, n, steps, dtype=torch.bool)
    for position, states, clean, stop, length, difference, x in rounds:
        for row in range(states.shape[1]):
            step = position + row
            (i,) = torch.where((length > 0) & (row <= stop) & (step < steps))
            j = step[i]
            after = states[i, min(row + 1, states.shape[1] - 1)]
            after = torch.where((stop[i] == row)[:, None], x[i], after).double()
            a, b, s = (table[j, None].double() for table in (chain.a, chain.b, chain.s))
            noise[i, j] = (after - a * states[i, row] - b * clean[i, row]) / s
            d = difference[i, row].double()
            distance[i, j] = d.norm(dim=1)
            along[i, j] = (noise[i, j] * d).sum(1) / distance[i, j]
            first[i, j] = row == 0
            last[i, j] = row == length[i] - 1
    assert noise.isfinite().all()
    return Innovations(noise, along, distance, first, last, result.calls)


def _score(value: object, count: object) -> float:
    """In standard errors: of a mean of ``count`` terms, or a sum of variance ``1/count``."""
    return float(np.asarray(value) * np.sqrt(np.asarray(count, dtype=float)))
