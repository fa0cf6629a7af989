"""The gain: how the model's prediction answers to the noise, fitted once for each checkpoint."""

from __future__ import annotations

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

    Errors are root mean squares and not means: chunks whose drafts are bad lose whole windows.

    Attributes:
        basis: Q, ``(D, D)``, columns orthonormal; D is the flattened state.
        slope: g, ``(K, D)``, not negative; zero at step 0.
        step_error: Root mean square of ``x0_j - x0_{j-1} - G_j s_{j-1} z_{j-1}``, ``(K,)``.
        revisit_error: Root mean square error of a draft that revisits step j, ``(K,)``.
        warm_error: The same of a draft at step j from the previous chunk alone, ``(K,)``.
        clip: The model's own bound on the predictions, or None.
    """

    basis: Tensor
    slope: Tensor
    step_error: Tensor
    revisit_error: Tensor
    warm_error: Tensor
    clip: float | None = None

    def __post_init__(self) -> None:
        """Refuse tensors that no fit gives."""
        k, d = self.slope.shape if self.slope.ndim == 2 else (-1, -1)
        expected = {"basis": (d, d), "slope": (k, d)}
        for name, tensor in self.tensors().items():
            shape = expected.get(name, (k,))
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
        The gain; its ``revisit_error`` is that of a draft made from the step before, until
        it is measured (``measure_revisits``).

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
    residual = (change - slope[1:] * innovation).square().sum(-1).mean(0).sqrt()
    step_error = torch.cat([residual[:1], residual])
    warm_error = torch.zeros(k, device=device)
    if previous is not None and bool((known := previous.isfinite().all(1)).any()):
        drawn = torch.cat([torch.zeros_like(change[:, :1]), (slope[1:] * innovation).cumsum(1)], 1)
        guess = (previous @ basis)[known, None] + drawn[known]
        missed = guess - predictions[known] @ basis
        warm_error = missed.square().sum(-1).mean(0).sqrt()
    return Gain(
        basis.contiguous(),
        slope,
        step_error,
        step_error.clone(),
        warm_error,
        clip,
    )
