"""Other projects' tensors in our networks: what their shapes say, and a strict fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.errors import AsdPolicyError, CheckpointError
from asd_policy.formats.torch_files import StoredTensor
from asd_policy.policies.normalizer import Normalizer
from asd_policy.policies.spec import PolicySpec

Tensors = Mapping[str, "Tensor | StoredTensor"]


def part(tensors: Tensors, prefix: str) -> dict[str, Tensor | StoredTensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {n[len(prefix) :]: t for n, t in tensors.items() if str(n).startswith(prefix)}


def shape(tensors: Tensors, name: str, where: str) -> tuple[int, ...]:
    """The shape of a tensor that must be there.

    Raises:
        CheckpointError: If it is not.
    """
    if not isinstance(tensors.get(name), (Tensor, StoredTensor)):
        raise CheckpointError(f"{where}: the tensor {name} is missing")
    return tuple(tensors[name].shape)


def values(tensor: Tensor | StoredTensor) -> Tensor:
    """The values of a tensor, read now if they were not."""
    return tensor.read() if isinstance(tensor, StoredTensor) else tensor


def unet_options(tensors: Tensors, n_groups: int, where: str) -> dict[str, Any]:
    """The options of the U-Net (Chi's names) that has these tensors.

    Shapes tell all but the groups: configurations are known to disagree with their weights.

    Args:
        tensors: Of the network alone.
        n_groups: Groups of the normalisations.
        where: The file, for messages.

    Raises:
        CheckpointError: If they are no U-Net's, or one with local conditions.
    """
    if any(name.startswith("local_cond_encoder.") for name in tensors):
        raise CheckpointError(f"{where}: a U-Net with local conditions; only global ones are run")
    levels = 1 + max(
        (int(m[1]) for name in tensors if (m := re.match(r"down_modules\.(\d{1,3})\.", name))),
        default=-1,
    )
    first = "down_modules.{}.0.blocks.0.block.0.weight"
    down_dims = [shape(tensors, first.format(level), where)[0] for level in range(levels)]
    film = shape(tensors, "down_modules.0.0.cond_encoder.1.weight", where)
    return {
        "name": "chi_unet",
        "diffusion_step_embed_dim": shape(tensors, "diffusion_step_encoder.3.weight", where)[0],
        "down_dims": down_dims,
        "kernel_size": shape(tensors, first.format(0), where)[2],
        "n_groups": n_groups,
        "cond_predict_scale": film[0] == 2 * down_dims[0],
    }


def filled(spec: PolicySpec, tensors: Tensors, where: str) -> nn.Module:
    """The network of a specification, with these tensors as its weights.

    Raises:
        CheckpointError: Naming what is missing, unknown, of another shape or not finite.
    """
    try:
        with torch.device("meta"):
            network = spec.build_network()
        spec.build_chain()
    except (AsdPolicyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    fill(network, tensors, where)
    return network.requires_grad_(False).eval()


def fill(module: nn.Module, tensors: Tensors, where: str) -> None:
    """Give a module on the meta device its weights, in float32.

    Raises:
        CheckpointError: Naming what is missing, unknown, of another shape or not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unknown:
        raise CheckpointError(
            f"{where}: missing tensors {_some(missing)}, unknown tensors {_some(unknown)}"
        )
    weights = {}
    for name, size in expected.items():
        if shape(tensors, name, where) != size:
            raise CheckpointError(
                f"{where}: tensor {name}: expected shape {size}, got {shape(tensors, name, where)}"
            )
        # Memory of their own: where tensors begin in a file would decide how kernels round.
        weights[name] = values(tensors[name]).to(torch.float32, copy=True)
        if not bool(torch.isfinite(weights[name]).all()):
            raise CheckpointError(f"{where}: tensor {name} holds NaN or infinity")
    module.load_state_dict(weights, strict=True, assign=True)


def affine(scale: Tensor, offset: Tensor, size: int, name: str, where: str) -> Normalizer:
    """The normaliser ``scale * raw + offset``, single values taken for all.

    Raises:
        CheckpointError: If the sizes disagree or it cannot be undone.
    """
    scale, offset = (t.detach().flatten().double().cpu() for t in (scale, offset))
    if scale.shape != offset.shape or len(scale) not in (1, size):
        raise CheckpointError(
            f"{where}: normaliser {name!r}: expected {size} values, got {tuple(scale.shape)} and "
            f"{tuple(offset.shape)}"
        )
    try:
        return Normalizer(scale.expand(size).clone(), offset.expand(size).clone())
    except ValueError as error:
        raise CheckpointError(f"{where}: normaliser {name!r}: {error}") from error


def _some(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{names[:most]}{more}"
