"""What stands for a CUDA graph without a GPU: the operations of one run, done again and again.

As in a graph, Python runs once: a replay does the operations that were recorded, on the tensors
that they were recorded on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITS = (
    "_local_scalar_dense",
    "item",  # as the one before is called within inference_mode
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "unique",
    "repeat_interleave",
)


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """Warm up, record and return what replays, as ``capture_graph`` does."""
    for _ in range(3):
        function()
    with _Tape() as tape:
        function()
    return tape.replay


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, ...]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation.name().removeprefix("aten::").partition(".")[0]
        masks = [t for t in _tensors(args[1:]) if t.dtype == torch.bool]
        found = name == "where" and len(_tensors((args, kwargs))) == 1  # where(condition)
        if found or name in _WAITS or (name in ("index", "index_put", "index_put_") and masks):
            raise AssertionError(f"{operation.name()} waits for the device: no graph can hold it")
        result = operation(*args, **kwargs)
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        # A view, or what was changed in place, is in its place already.
        made = [
            t if t.untyped_storage().data_ptr() not in given else None for t in _tensors(result)
        ]
        self._done.append((operation, args, kwargs, made))
        return result

    def replay(self) -> None:
        for operation, args, kwargs, made in self._done:
            for place, tensor in zip(made, _tensors(operation(*args, **kwargs)), strict=True):
                if place is not None:
                    place.copy_(tensor)


def _tensors(tree: Any) -> list[torch.Tensor]:
    """All but oneDNN's packed weights, which have no memory to look at and never change."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [tensor for tensor in tensors if tensor.layout is not torch._mkldnn]
