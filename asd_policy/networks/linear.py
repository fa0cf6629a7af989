"""Linear maps, in inference on x86 processors through oneDNN.

PyTorch multiplies float32 matrices there with MKL, which leaves half and more of what processors of
other makers than Intel can do unused; its convolutions go through oneDNN already.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether oneDNN multiplies here. Elsewhere PyTorch's own way is the best there is."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``: ``(..., K)`` by ``(M, K)`` to ``(..., M)``.

    oneDNN has no derivative of it, and is asked for float32 alone. Of two rows and more, a row's
    result does not depend on the rows beside it, bit for bit.
    """
    if (
        ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    ):
        # The operator that torch.compile puts in place of F.linear when it freezes weights.
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``; its parameters and their names are the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., K)`` to ``(..., M)``."""
        return linear(x, self.weight, self.bias)
