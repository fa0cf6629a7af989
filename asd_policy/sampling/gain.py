"""The gain: how the model's prediction answers to the noise, fitted once for each checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from asd_policy.errors import SamplerError
from asd_policy.sampling.chain import GaussianChain


@dataclass(frozen=True, eq=False)
class Gain:
    """``G_j = Q diag(g_j) Qᵀ ≈ E[∂x0/∂x]`` at step j, and how far drafts made with it are off.

    Along the reverse process x̂0 is a martingale whose increments are its posterior covariance times
    the noise. For Gaussian data the covariances of all steps share their eigenvectors; fitting
    a diagonal in one common basis predicts real policies better than a full matrix for each step
    (fewer numbers to learn), and makes a drafted path a cumulative sum.

    Attributes:
        basis: Q, ``(D, D)``, columns orthonormal; D is the flattened state.
        slope: g, ``(K, D)``, not negative; zero at step 0.
        error: How far a draft of x̂0 is off, ``(K + 1, K)`` by ``[L + 1, j]``: at step j when steps
            up to L have been visited; row 0 with nothing but the previous chunk. A norm; of many
            chunks the one that lets prefixes of a window stand as often as theirs do
            (``typical_error``): a mean square would follow the few chunks that no draft fits.
        clip: The model's own bound on the predictions, or None.
    """

    basis: Tensor
    slope: Tensor
    error: Tensor
    clip: float | None = None

    def __post_init__(self) -> None:
        """Refuse tensors that no fit gives."""
        k, d = self.slope.shape if self.slope.ndim == 2 else (-1, -1)
        expected = {"basis": (d, d), "slope": (k, d), "error": (k + 1, k)}
        for name, tensor in self.tensors().items():
            shape = expected[name]
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise SamplerError(
                    f"gain: {name}: expected float32 of shape {shape}, got {tensor.dtype} of "
                    f"shape {tuple(tensor.shape)}"
                )
            if name != "basis" and not bool(((tensor >= 0) & tensor.isfinite()).all()):
                raise SamplerError(f"gain: {name}: expected finite values of 0 or more")
        eye = torch.eye(d, device=self.basis.device)
        if not torch.allclose(self.basis.T @ self.basis, eye, atol=1e-3):
            raise SamplerError("gain: basis: expected orthonormal columns")

    @property
    def num_steps(self) -> int:
        """K, the steps of the chain that it was fitted for."""
        return self.slope.shape[0]

    @property
    def size(self) -> int:
        """D, the size of a flattened state."""
        return self.slope.shape[1]

    def to(self, device: torch.device) -> Gain:
        """The same gain on a device."""
        return Gain(
            **{name: tensor.to(device) for name, tensor in self.tensors().items()}, clip=self.clip
        )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names: all but the clip."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)[:-1]}

    def clipped(self, prediction: Tensor) -> Tensor:
        """Apply the model's own bound."""
        return prediction if self.clip is None else prediction.clamp(-self.clip, self.clip)


def rotate_rows(x: Tensor, basis: Tensor) -> Tensor:
    """``x @ basis`` for x ``(..., D)``; on the CPU row by row.

    A matrix product rounds otherwise for other numbers of rows there, and a chain's path must not
    depend on the chains beside it.
    """
    if x.device.type != "cpu":
        return x @ basis
    rows = x.reshape(-1, 1, x.shape[-1])
    return torch.bmm(rows, basis.expand(len(rows), *basis.shape)).view(x.shape)


HOPELESS = 1e6
"""The error of a draft of which nothing is known."""


def typical_error(error: Tensor, gap: Tensor, one_path: bool = False) -> Tensor:
    """The error whose drafts are accepted as often as those of many errors, on average.

    A draft at step j is accepted with probability ``2 Φ(-‖D‖/2)``, ``‖D‖ = gap_j ‖error‖``
    (Hu et al. 2025).

    Args:
        error: Norms of errors by chunk and step, ``(N, J)``; NaN where there was none.
        gap: ``b_j / s_j``, ``(J,)``; at a step without noise (0) the root mean square is given.
        one_path: Whether the steps are those of one draft, of which a step is put to the test
            only if all before it stand. Chunks differ: those that get far are the easy ones, and
            their errors count in proportion, so that whole prefixes stand as often as they do.

    Returns:
        ``(J,)``; NaN at steps without any error.
    """
    error, gap = error.double(), gap.double()
    accepted = torch.erfc(gap * error / math.sqrt(8))
    weight = torch.ones_like(accepted)
    if one_path:
        weight[:, 1:] = accepted[:, :-1].cumprod(1)
    weight = weight.clamp(min=1e-12).masked_fill(accepted.isnan(), 0.0)
    mean = (weight * accepted).nansum(0) / weight.sum(0)
    # Where next to none is accepted the inverse is without bound; such a step is hopeless anyway.
    equal = math.sqrt(8) * torch.erfinv(1 - mean.clamp(min=1e-9)) / gap
    return torch.where(gap > 0, equal, error.square().nanmean(0).sqrt()).float()


def fit_gain(
    chain: GaussianChain,
    predictions: Tensor,
    noise: Tensor,
    clip: float | None,
    previous: Tensor | None = None,
) -> Gain:
    """Fit a gain to sequential paths, by least squares in each coordinate.

    Args:
        chain: The reverse process.
        predictions: x̂0 along the paths, ``(N, K, D)``.
        noise: Their z, ``(N, K, D)``.
        clip: The model's own bound on x̂0.
        previous: For each path the prediction that was known before it began, ``(N, D)``; rows of
            NaN where there was none.

    Returns:
        The gain; of a step that is visited again it has the error that a draft made from the step
        before would have, until that is measured (``calibrate``).

    Raises:
        SamplerError: If there are fewer than 16 paths or the shapes disagree.
    """
    n, k, size = predictions.shape if predictions.ndim == 3 else (0, 0, 0)
    if n < 16 or noise.shape != predictions.shape or k != chain.num_steps:
        raise SamplerError(
            f"fit_gain: expected predictions and noise (N ≥ 16, {chain.num_steps}, D), got "
            f"{tuple(predictions.shape)} and {tuple(noise.shape)}"
        )
    device = predictions.device
    s, b = chain.s.to(device, torch.float32), chain.b.to(device, torch.float32)
    change = predictions[:, 1:] - predictions[:, :-1]
    # What matters of a draft's error is its size beside the noise of its step (the last has none).
    weighted = change[:, :-1] * (b / s)[1:-1, None]
    _, basis = torch.linalg.eigh(torch.einsum("nki,nkj->ij", weighted, weighted))
    change = change @ basis
    innovation = (s[:-1, None] * noise[:, :-1]) @ basis
    slope = torch.zeros(k, size, device=device)
    slope[1:] = ((innovation * change).sum(0) / innovation.square().sum(0)).clamp(min=0)
    drawn = torch.zeros_like(predictions)
    drawn[:, 1:] = (slope[1:] * innovation).cumsum(1) @ basis.T
    return Gain(
        basis.contiguous(), slope, _draft_errors(chain, predictions, drawn, clip, previous), clip
    )


def _draft_errors(
    chain: GaussianChain,
    predictions: Tensor,
    drawn: Tensor,
    clip: float | None,
    previous: Tensor | None,
) -> Tensor:
    """Errors ``(K + 1, K)`` of drafts for known paths; see ``Gain.error``.

    Args:
        chain: The reverse process.
        predictions: x̂0 along the paths, ``(N, K, D)``.
        drawn: What the gain makes of the noise up to each step, ``(N, K, D)``.
        clip: The model's own bound on x̂0.
        previous: The predictions that were known before, ``(N, D)`` with rows of NaN, or None.
    """
    k = chain.num_steps
    gap = torch.where(chain.s > 0, chain.b / chain.s, 0.0).to(predictions.device)
    error = predictions.new_full((k + 1, k), HOPELESS)

    def missed(start: Tensor, rest: Tensor) -> Tensor:
        guess = start + rest
        return ((guess if clip is None else guess.clamp(-clip, clip)) - predictions).norm(dim=-1)

    for last in range(k - 1):
        ahead = missed(predictions[:, last, None], drawn - drawn[:, last, None])
        error[last + 1, last + 1 :] = typical_error(
            ahead[:, last + 1 :], gap[last + 1 :], one_path=True
        )
    if previous is not None and bool(previous.isfinite().all(1).any()):
        error[0] = typical_error(missed(previous[:, None], drawn), gap, one_path=True)
    steps = torch.arange(k, device=error.device)
    one_ahead = error[steps, steps].clone()
    one_ahead[:1] = one_ahead[1:2] if k > 1 else HOPELESS
    visited = steps <= steps[:, None]
    error[1:] = torch.where(visited, one_ahead, error[1:])
    return error
