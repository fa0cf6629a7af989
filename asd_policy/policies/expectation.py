"""Which chunk to expect of an observation: kernel regression on what a policy planned before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError

_WIDTHS = (1.0, 4.0, 16.0, 64.0)
"""Kernel widths that are tried, in median squared distances."""

_RIDGES = (1e-3, 1e-2, 1e-1)
_PERSISTENCES = (0.0, 1.0)
_STEPS = 20
"""How many steps' predictions are tried for what to expect."""

_LEAST_SPREAD = 0.02
"""Standard deviation, normalised, below which a feature is taken for constant."""


@dataclass(frozen=True, eq=False)
class Expectation:
    """Kernel ridge regression of what a model predicts: of the mean of all chunks it might plan.

    A chunk whose first draft begins from that needs no call to learn it. The regression corrects
    ``persistence · p + mean``, p the chunk planned before as it is seen now: where little of a
    chunk is executed before the next one, p says much, and else nearly nothing. The kernel is
    ``k(c, c') (1 + k(p, p'))`` with Gaussian k and c what was observed; its second part, and p, are
    left out where no chunk was planned before.

    Attributes:
        condition: Observations that it was fitted at, in kernel widths, ``(M, C)``.
        previous: Chunks planned before them, in kernel widths, ``(M, D)``; zeros where none was.
        known: 1 where there was one, else 0, ``(M,)``.
        condition_scale: Kernel widths in a unit of each feature, ``(C,)``.
        previous_scale: The same of each entry of a chunk, ``(D,)``.
        weights: ``(M, D)``.
        mean: The mean of what is left to explain, ``(D,)``.
        persistence: 1 where the chunk planned before is corrected, 0 where the mean is, ``()``.
    """

    condition: Tensor
    previous: Tensor
    known: Tensor
    condition_scale: Tensor
    previous_scale: Tensor
    weights: Tensor
    mean: Tensor
    persistence: Tensor

    def __post_init__(self) -> None:
        """Refuse tensors that no fit gives."""
        m, c = self.condition.shape if self.condition.ndim == 2 else (-1, -1)
        d = self.mean.shape[0] if self.mean.ndim == 1 else -1
        expected = {
            "condition": (m, c),
            "previous": (m, d),
            "known": (m,),
            "condition_scale": (c,),
            "previous_scale": (d,),
            "weights": (m, d),
            "mean": (d,),
            "persistence": (),
        }
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != expected[name] or not tensor.is_floating_point():
                raise CheckpointError(
                    f"expectation: {name}: expected floating point of shape {expected[name]}, got "
                    f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                )
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(f"expectation: {name}: expected finite values")

    @property
    def sizes(self) -> tuple[int, int]:
        """C and D: features of an observation, entries of a chunk."""
        return self.condition.shape[1], self.mean.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def to(self, device: torch.device) -> Expectation:
        """The same on a device, in float32."""
        return Expectation(
            **{name: tensor.to(device, torch.float32) for name, tensor in self.tensors().items()}
        )

    def __call__(self, condition: Tensor, previous: Sequence[Tensor | None]) -> Tensor:
        """The chunks to expect.

        Args:
            condition: What is observed, ``(N, C)``.
            previous: For each the chunk planned before, of D entries, or None.

        Returns:
            ``(N, D)``.
        """
        nothing = torch.zeros_like(self.mean)
        chunks = torch.stack([nothing if p is None else p.flatten().to(nothing) for p in previous])
        known = torch.tensor([p is not None for p in previous]).to(nothing)
        base = self.persistence * chunks + self.mean
        inputs = (condition * self.condition_scale, chunks * self.previous_scale, known)
        if condition.device.type != "cpu":
            return base + self._correction(*inputs)
        # Row by row, since sums over other numbers of rows round otherwise there.
        rows = zip(*(tensor.split(1) for tensor in inputs), strict=True)
        return base + torch.cat([self._correction(*row) for row in rows])

    def _correction(self, condition: Tensor, previous: Tensor, known: Tensor) -> Tensor:
        observed = (condition[:, None] - self.condition).square().sum(-1)
        planned = (previous[:, None] - self.previous).square().sum(-1)
        return _kernel(observed, planned, known[:, None] * self.known) @ self.weights


def fit_expectation(
    condition: Tensor,
    previous: Sequence[Tensor | None],
    predictions: Tensor,
    episode: Tensor,
) -> tuple[Expectation, Tensor]:
    """Fit it to N situations; whatever there is to choose foretells other episodes best.

    Along a chain x̂0 is a martingale, so that every step's prediction has the mean sought, the
    earliest with the least spread. But what a network says of pure noise can be far off, as that
    of noise prediction is, divided by next to nothing and clipped; so the step is chosen, too.

    Args:
        condition: What was observed, normalised, ``(N, C)``.
        previous: For each the chunk planned before, of D entries, or None.
        predictions: x̂0 along a chain, ``(N, K, D)``.
        episode: Which episode each situation is of, ``(N,)``; two or more.

    Returns:
        The expectation, and for each situation what it would have been without the situation's own
        episode, ``(N, D)``.
    """
    nothing = torch.zeros_like(predictions[0, 0])
    chunks = torch.stack([nothing if p is None else p.flatten().to(nothing) for p in previous])
    known = torch.tensor([p is not None for p in previous], device=nothing.device)
    targets = predictions[:, :: max(1, predictions.shape[1] // _STEPS)].double()
    both = (known[:, None] & known).double()
    condition_unit = _unit(condition, torch.ones_like(known))
    previous_unit = _unit(chunks, known)
    observed = _distances(condition, condition_unit)
    planned = _distances(chunks, previous_unit)
    episodes = [(episode == number).nonzero()[:, 0] for number in episode.unique()]
    best = None
    for observed_width, planned_width, ridge in product(_WIDTHS, _WIDTHS, _RIDGES):
        kernel = _kernel(observed / observed_width, planned / planned_width, both)
        inverse = torch.linalg.inv(kernel + ridge * torch.eye(len(kernel)).to(kernel))
        for persistence in _PERSISTENCES:
            left = targets - persistence * chunks[:, None]
            mean = left.mean(0)
            weights = inverse @ (left - mean).flatten(1)
            # What an episode's rows would be off had it been left out of the fit.
            missed = torch.zeros_like(weights)
            for rows in episodes:
                missed[rows] = torch.linalg.solve(inverse[rows][:, rows], weights[rows])
            loss, at = missed.view(targets.shape).norm(dim=2).mean(0).min(0)
            if best is None or float(loss) < best[0]:
                step = int(at)
                widths = observed_width, planned_width
                fit = weights.view(targets.shape)[:, step].clone()
                off = missed.view(targets.shape)[:, step].clone()
                best = float(loss), step, persistence, widths, mean[step], fit, off
    assert best is not None
    _, step, persistence, (observed_width, planned_width), mean, weights, missed = best
    condition_scale = (condition_unit / observed_width**0.5).float()
    previous_scale = (previous_unit / planned_width**0.5).float()
    # Half precision halves the file, and changes what is expected far less than it is off.
    fitted = Expectation(
        (condition * condition_scale).half(),
        (chunks * previous_scale).half(),
        known.float(),
        condition_scale,
        previous_scale,
        weights.half(),
        mean.float(),
        torch.tensor(persistence),
    )
    return fitted, (targets[:, step] - missed).to(predictions.dtype)


def _kernel(observed: Tensor, planned: Tensor, both: Tensor) -> Tensor:
    """From squared distances in kernel widths, and 1 where both have a previous chunk."""
    return (-observed).exp() * (1 + both * (-planned).exp())


def _unit(values: Tensor, rows: Tensor) -> Tensor:
    """What ``(F,)`` to multiply features by so that the median squared distance of rows is 1."""
    if int(rows.sum()) < 2:
        return torch.zeros_like(values[0]).double()
    unit = 1 / values[rows].double().std(0).clamp(min=_LEAST_SPREAD)
    distances = _distances(values[rows], unit)
    typical = distances[torch.ones_like(distances).triu(1) > 0].median()
    return unit / typical.clamp(min=1e-12).sqrt()


def _distances(values: Tensor, unit: Tensor) -> Tensor:
    """Squared distances ``(N, N)``."""
    return torch.cdist(values * unit, values * unit).square()
