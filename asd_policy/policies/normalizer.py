"""Affine normalisers: what the network sees is ``scale * raw + offset``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Normalizer:
    """A per-dimension affine map between raw values and the network's.

    It is computed in the tables' own precision: imported statistics are kept in float64, in which
    a dimension that hardly varied (a large scale, a large offset) keeps its digits.

    Attributes:
        scale: ``(D,)`` float32 or float64; zero for what is not seen.
        offset: ``(D,)``, of the same type.
    """

    scale: Tensor
    offset: Tensor

    def __post_init__(self) -> None:
        """Refuse tensors that are no such map."""
        if self.scale.ndim != 1 or self.scale.shape != self.offset.shape:
            raise ValueError(
                f"a normaliser's scale and offset must share one shape (D,); got "
                f"{tuple(self.scale.shape)} and {tuple(self.offset.shape)}"
            )
        if self.scale.dtype != self.offset.dtype or not self.scale.is_floating_point():
            raise ValueError(
                f"a normaliser's scale and offset must be of one floating-point type; got "
                f"{self.scale.dtype} and {self.offset.dtype}"
            )
        if not bool((torch.isfinite(self.scale) & torch.isfinite(self.offset)).all()):
            raise ValueError("a normaliser's scale and offset must be finite")

    @classmethod
    def fit_limits(cls, data: Tensor, range_eps: float = 1e-4) -> Normalizer:
        """Map each dimension's observed range to [-1, 1].

        Args:
            data: ``(N, D)`` raw values.
            range_eps: A dimension that varies less is constant: it is centred, not stretched.
        """
        low, high = data.double().amin(0), data.double().amax(0)
        constant = high - low < range_eps
        scale = torch.where(constant, 1.0, 2.0 / (high - low).clamp(min=range_eps))
        offset = -scale * (high + low) / 2
        return cls(scale.float(), offset.float())

    def repeated(self, size: int) -> Normalizer:
        """The same map for ``size`` values, each of its own for a run of them: pixels of a channel.

        Raises:
            ValueError: If the size is no multiple of its own.
        """
        times, rest = divmod(size, len(self.scale))
        if rest:
            raise ValueError(f"{size} values are not {len(self.scale)} runs of equal length")
        return Normalizer(self.scale.repeat_interleave(times), self.offset.repeat_interleave(times))

    def to(self, device: torch.device) -> Normalizer:
        """The same map with its tensors on a device."""
        return Normalizer(self.scale.to(device), self.offset.to(device))

    def normalize(self, raw: Tensor) -> Tensor:
        """Map raw values ``(..., D)`` to the network's, of the same type."""
        return (raw.to(self.scale.dtype) * self.scale + self.offset).to(raw.dtype)

    def unnormalize(self, normalized: Tensor) -> Tensor:
        """Map the network's values ``(..., D)`` back to raw ones, of the same type."""
        raw = (normalized.to(self.scale.dtype) - self.offset) / self.scale
        return raw.to(normalized.dtype)
