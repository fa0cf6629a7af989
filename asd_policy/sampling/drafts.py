"""Drafts: what the next predictions are guessed to be, and the path they lead along.

Every draft obeys one rule (it is what keeps the samplers exact): the draft of step j may depend on
states, evaluations and noise of steps before j and on anything known before the chunk began, and on
nothing of ``z_j`` or ``u_j``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from asd_policy.errors import SamplerError
from asd_policy.sampling.chain import GaussianChain
from asd_policy.sampling.gain import Gain, rotate_rows
from asd_policy.sampling.result import Denoise

DraftKind = Literal["frozen", "drift", "independent", "carry", "refine", "gain"]

ANCHORED: tuple[DraftKind, ...] = ("frozen", "drift")
"""Drafts that, as published, call for the model at the new state after each rejection."""

REVISITING: tuple[DraftKind, ...] = ("refine", "gain")
"""Drafts that keep what the model said along a discarded path."""

_TRUST = 0.9
"""How much of a secant is believed; all of it takes about as many calls (benchmarks/drafts.md)."""

_FAR = 1e-4
"""How far apart two visits of a step must be (a norm, normalised) to tell more than rounding."""

_CORRECTIONS = 2
"""Passes over a path whose guesses depend on its own states; a third changes nothing."""


class PathTables:
    """``x_{j+1} = w_j x_j + b_j h_j + s_j z_j`` over many steps as one cumulative sum.

    With ``c_j = w_0 … w_{j-1}`` the scaled states ``x_j / c_j`` grow by ``(b h + s z) / c_{j+1}``.
    In float64, since c falls by many orders of magnitude.

    Args:
        weight: w, ``(K,)`` or one for each coordinate, ``(K, D)``; positive before the last step.
        chain: Where b and s are from.
        device: Where the tables live.
    """

    def __init__(self, weight: Tensor, chain: GaussianChain, device: torch.device) -> None:
        weight = weight.double().reshape(chain.num_steps, -1)
        product = torch.cat([torch.ones_like(weight[:1]), weight[:-1].cumprod(0)])
        # The last step's successor is no state of any window; 1 keeps its entry finite.
        following = torch.cat([product[1:], torch.ones_like(product[:1])])
        self._product = product.to(device)
        self._drift = (chain.b[:, None] / following).to(device)
        self._spread = (chain.s[:, None] / following).to(device)

    def follow(self, x: Tensor, step: Tensor, h: Tensor, z: Tensor) -> Tensor:
        """The states ``(N, W, D)`` at steps ``(N, W)`` from x ``(N, D)`` at the first of them."""
        product = self._product[step]
        increments = self._drift[step] * h + self._spread[step] * z
        scaled = torch.cat([x[:, None] / product[:, :1], increments[:, :-1]], dim=1).cumsum(1)
        return (product * scaled).to(x.dtype)


class Drafts:
    """What N chains guess of the model: for each step an affine function of the state.

    Up to step ``last`` the guess is ``h_j + G_j x_j``, made of what the model said there; beyond
    it the last prediction follows the noise, ``x0_last + Σ G_k s_{k-1} z_{k-1}``. With the gain a
    posterior covariance this is the prediction's martingale to first order; without one G is 0.

    G is the same for all chunks. A step that was visited twice tells more: by how much the model
    differed from G between the two visits, which is taken to hold in their direction (a secant, as
    in Broyden's method).

    Args:
        kind: ``frozen`` (Hu et al. 2025, arXiv 2505.03983): the anchor's prediction for every step.
            ``drift`` (De Bortoli et al. 2025, arXiv 2501.05370): the anchor's increment ``m - x``.
            ``independent`` (the same): another model's prediction, step after step.
            ``carry``: the last verified prediction. ``refine``: each step's own prediction on
            the discarded path, so that a verification is also a Picard sweep on the same noise.
            ``gain``: refine, follow the posterior, and learn from what the model said twice.
        chain: The reverse process.
        gain: For ``gain`` alone.
        device: Where to work.
    """

    def __init__(
        self, kind: DraftKind, chain: GaussianChain, gain: Gain | None, device: torch.device
    ) -> None:
        self.kind = kind
        self._gain = gain if kind == "gain" else None
        self._steps = torch.arange(chain.num_steps, device=device)
        self._path = PathTables(chain.a, chain, device)
        self._a, self._b, self._s = (
            table.to(device, torch.float32)[:, None] for table in (chain.a, chain.b, chain.s)
        )
        self._slope: Tensor | None = None
        if self._gain is not None:
            self._slope = self._gain.slope
        elif kind == "drift":
            self._slope = ((1 - chain.a) / chain.b)[:, None].to(device, torch.float32)
        if self._slope is not None:
            weight = chain.a[:, None] + chain.b[:, None] * self._slope.cpu()
            self._linear = PathTables(weight, chain, device)

    def begin(
        self,
        noise: Tensor,
        previous: Tensor,
        known: Tensor,
        model: Denoise | None,
        shape: Sequence[int],
    ) -> None:
        """Forget everything, and begin N chains.

        Args:
            noise: ``z``, ``(N, K, D)``.
            previous: Predictions of their samples from before they began, ``(N, D)``.
            known: For which chains there is one, ``(N,)`` bool.
            model: For ``independent``: the other model.
            shape: D as that model sees a state.

        Raises:
            SamplerError: If the kind needs a model and there is none.
        """
        if self.kind == "independent" and model is None:
            raise SamplerError(
                "speculative-independent needs a draft model, and this policy has none"
            )
        self._model = model if self.kind == "independent" else None
        self._shape = tuple(shape)
        # A model of its own needs no prediction to begin with.
        self.known = torch.ones_like(known) if self._model is not None else known
        self.h = torch.zeros_like(noise)
        # Where the model was asked last, and the last two visits' secant: its direction, divided by
        # its squared length, and by how much the model's answer was off in it.
        kept = noise if self._gain is not None else noise[:, :, :1]
        self._asked, self._direction, self._surprise = (torch.zeros_like(kept) for _ in range(3))
        # The last step that h is known of, and the step that the tail was predicted at; -1 is
        # before the chain began.
        self.last = torch.full_like(known, -1, dtype=torch.long)
        self._tail, self._tail_step = self._rotate(previous), self.last.clone()
        self.hear(noise)

    CHUNK_TENSORS = (
        *("h", "last", "_tail", "_tail_step", "_z", "_turned", "_drawn"),
        *("_asked", "_direction", "_surprise"),
    )
    """What a chunk's drafts live in: the tensors that ``begin`` makes and ``learn`` renews."""

    def hear(self, noise: Tensor) -> None:
        """Take the noise ``(N, K, D)`` that the next paths are drawn with."""
        self._z = noise
        self._turned = self._rotate(noise)
        if self._gain is None:
            self._drawn = torch.zeros_like(noise[:, :, :1])
        else:
            innovation = (self._s * self._turned)[:, :-1] * self._gain.slope[1:]
            self._drawn = torch.cat([torch.zeros_like(noise[:, :1]), innovation.cumsum(1)], 1)

    def propose(self, x: Tensor, position: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Guess the predictions of a window, and follow them.

        Args:
            x: States, ``(N, D)``.
            position: Their steps, ``(N,)``.
            step: Steps of the window, ``(N, W)``; entries beyond the chain repeat its last.

        Returns:
            Predictions and the states that they lead through, ``(N, W, D)`` each; the first state
            is x.
        """
        if self._model is not None:
            return self._propose_by_model(self._model, x, step)
        z, h = _at(self._z, step), _at(self.h, step)
        guess = h
        if self._slope is not None:
            start, turned = self._rotate(x), _at(self._turned, step)
            along = self._linear.follow(start, step, h, turned)
            if self._gain is not None:
                asked, direction, surprise = (
                    _at(values, step) for values in (self._asked, self._direction, self._surprise)
                )
                for _ in range(_CORRECTIONS):
                    part = (direction * (along - asked)).sum(-1, keepdim=True)
                    guess = h + _TRUST * part * surprise
                    along = self._linear.follow(start, step, guess, turned)
            guess = guess + self._slope[step] * along
        drawn = _at(self._drawn, step)
        row = (self.last - position).clamp(0, step.shape[1] - 1)[:, None]
        behind = torch.where(
            (self._tail_step >= 0)[:, None],
            self._tail - _at(self._drawn, self._tail_step.clamp(min=0)[:, None])[:, 0],
            self._tail,
        )
        reached = (self.last >= position)[:, None]
        base = torch.where(reached, _at(guess - drawn, row)[:, 0], behind)
        guess = torch.where((step <= self.last[:, None])[:, :, None], guess, base[:, None] + drawn)
        if self._gain is not None:
            guess = self._gain.clipped(self._rotate(guess, back=True))
        return guess, self._path.follow(x, step, guess, z)

    def _propose_by_model(self, model: Denoise, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """The only draft whose path is walked step by step: each needs a call of the model."""
        chains = torch.arange(len(x), device=x.device)
        guesses, states = [], []
        for j in step.unbind(1):
            guess = model(x.view(-1, *self._shape), j, chains).flatten(1)
            guesses.append(guess)
            states.append(x)
            noise = _at(self._z, j[:, None])[:, 0]
            x = self._a[j] * x + self._b[j] * guess + self._s[j] * noise
        return torch.stack(guesses, 1), torch.stack(states, 1)

    def learn(
        self,
        position: Tensor,
        states: Tensor,
        clean: Tensor,
        stop: Tensor,
        length: Tensor,
        mean: Tensor,
    ) -> None:
        """Take in what the model said of a window.

        Args:
            position: The window's first steps, ``(N,)``.
            states: Where the model was asked, ``(N, W, D)``.
            clean: What it predicted, ``(N, W, D)``.
            stop: Row of the last decided step, ``(N,)``.
            length: Rows that were evaluated, ``(N,)``; zero where a chain has ended.
            mean: The target's mean at row ``stop``, ``(N, D)``.
        """
        running = length > 0
        if self.kind == "independent":
            return
        if self.kind == "drift":
            increment = mean - _at(states, stop[:, None])[:, 0]
            self.h = increment[:, None] / self._b
            self.last = torch.full_like(self.last, len(self._steps) - 1)
            return
        revisits = self.kind in REVISITING
        source = (length - 1).clamp(min=0) if revisits else stop
        spoken = self._rotate(clean)
        at = position + source
        self._tail = torch.where(running[:, None], _at(spoken, source[:, None])[:, 0], self._tail)
        self._tail_step = torch.where(running, at, self._tail_step)
        if revisits:
            row = self._steps - position[:, None]
            seen = (row >= 0) & (row < length[:, None])
            row = row.clamp(0, clean.shape[1] - 1)
            h = _at(spoken, row)
            if self._gain is not None:
                asked = _at(self._rotate(states), row)
                h = h - self._gain.slope * asked
                self._compare(asked, h, seen & (self._steps <= self.last[:, None]))
                self._asked = torch.where(seen[:, :, None], asked, self._asked)
            self.h = torch.where(seen[:, :, None], h, self.h)
            self.last = torch.where(running, torch.maximum(self.last, at), self.last)

    def _compare(self, asked: Tensor, h: Tensor, again: Tensor) -> None:
        """Keep the secants of steps that were visited before, ``(N, K)``."""
        moved = asked - self._asked
        square = moved.square().sum(-1, keepdim=True)
        apart = again[:, :, None] & (square > _FAR**2)
        self._direction = torch.where(apart, moved / square, self._direction)
        self._surprise = torch.where(apart, h - self.h, self._surprise)

    def _rotate(self, x: Tensor, back: bool = False) -> Tensor:
        if self._gain is None:
            return x
        basis = self._gain.basis
        return rotate_rows(x, basis.T if back else basis)


def shifted(chunk: Tensor, executed: int) -> Tensor:
    """The chunk ``(Tp, Da)`` as it is seen after ``executed`` steps: the last action repeated."""
    return torch.cat([chunk[executed:], chunk[-1:].expand(min(executed, len(chunk)), -1)])


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Entries ``(N, W, D)`` of values ``(N, K, D)`` at steps ``(N, W)``."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[-1]))
