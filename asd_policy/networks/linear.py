"""Linear maps, in inference on x86 processors through oneDNN.

PyTorch multiplies float32 matrices there with MKL, which leaves half and more of what processors of
other makers than Intel can do unused; its convolutions go through oneDNN already.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether oneDNN multiplies here. Elsewhere PyTorch's own way is the best there is."""

Packs = dict[tuple[int, int, int], tuple[int, Tensor, Tensor]]
"""By address and shape of a weight: its version, itself (so that nothing else gets the address) and
the weight in oneDNN's own order."""

_packs: ContextVar[Packs | None] = ContextVar("packs", default=None)


@contextlib.contextmanager
def packed_weights(packs: Packs) -> Iterator[None]:
    """Within it, weights are brought into oneDNN's order once, which shortens calls of few rows.

    Args:
        packs: Where they are kept, at first empty, and no longer than the network itself: a second
            copy. What changes a weight in place has it made anew, but for changes of ``.data``.
    """
    token = _packs.set(packs)
    try:
        yield
    finally:
        _packs.reset(token)


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
        return torch.ops.mkldnn._linear_pointwise(x, _packed(weight), bias, "none", [], "")
    return F.linear(x, weight, bias)


def _packed(weight: Tensor) -> Tensor:
    packs = _packs.get()
    if packs is None:
        return weight
    key = (weight.data_ptr(), *weight.shape)
    version = 0 if weight.is_inference() else weight._version
    known = packs.get(key)
    if known is None or known[0] != version:
        own = weight.detach()
        known = packs[key] = version, own, torch.ops.mkldnn._reorder_linear_weight(own)
    return known[2]


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``; its parameters and their names are the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., K)`` to ``(..., M)``."""
        return linear(x, self.weight, self.bias)
