"""Other projects' image encoders in ours: names, and the options that shapes tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from asd_policy.errors import CheckpointError
from asd_policy.formats.weights import Tensors, part, shape
from asd_policy.networks.sizes import MOST_LAYERS

# The children of a torchvision ResNet in order, as Sequential numbers them.
_CHILDREN = {
    "0": "conv1",
    "1": "bn1",
    "4": "layer1",
    "5": "layer2",
    "6": "layer3",
    "7": "layer4",
}


def numbered_backbone(tensors: Tensors) -> Tensors:
    """A ResNet whose children are numbered, by torchvision's names.

    Raises:
        CheckpointError: If a number is none of a ResNet's.
    """
    renamed = {}
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        if number not in _CHILDREN:
            raise CheckpointError(f"an image encoder with a part {name!r}, which no ResNet has")
        renamed[f"{_CHILDREN[number]}.{rest}"] = tensor
    return renamed


def encoder_options(tensors: Tensors, where: str) -> dict[str, Any]:
    """The options of ``ImageEncoder`` that its tensors tell.

    Args:
        tensors: ``backbone.…`` by torchvision's names, ``pool.nets.…`` and ``out.…`` if there.
        where: The file, for messages.

    Raises:
        CheckpointError: If they are no such encoder's.
    """
    backbone = part(tensors, "backbone.")
    if any(re.match(r"layer\d\.\d+\.conv3\.", name) for name in backbone):
        raise CheckpointError(f"{where}: a ResNet of bottlenecks; only ResNet-18 and 34 are run")
    widths, blocks = [], []
    for stage in range(1, 5):
        widths.append(shape(backbone, f"layer{stage}.0.conv1.weight", where)[0])
        numbers = [
            int(m[1]) for name in backbone if (m := re.match(rf"layer{stage}\.(\d{{1,3}})\.", name))
        ]
        blocks.append(min(1 + max(numbers), MOST_LAYERS))
    options: dict[str, Any] = {
        "widths": widths,
        "blocks": blocks,
        "norm": "batch" if "bn1.running_mean" in backbone else "group",
        "pool": "average",
        "feature_dim": None,
    }
    if "pool.nets.weight" in tensors:
        options["pool"] = "spatial_softmax"
        options["keypoints"] = shape(tensors, "pool.nets.weight", where)[0]
    if "out.weight" in tensors:
        options["feature_dim"] = shape(tensors, "out.weight", where)[0]
    return options


def same_options(found: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """The options that all of a policy's encoders have.

    Raises:
        CheckpointError: If they differ.
    """
    if not found or any(options != found[0] for options in found):
        raise CheckpointError(f"{where}: image encoders of different kinds: {found}")
    return found[0]


def robomimic_encoder(tensors: Tensors, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One camera's encoder as robomimic saves it: under two names, and with constants.

    Args:
        tensors: ``backbone.nets.…``, ``pool.…``, ``nets.…``.
        where: The file, for messages.

    Returns:
        Its options, and its tensors by our names.

    Raises:
        CheckpointError: If it is no ResNet with a spatial softmax and a linear map.
    """
    ours: dict[str, Any] = {
        f"backbone.{name}": tensor
        for name, tensor in numbered_backbone(part(tensors, "backbone.nets.")).items()
    }
    ours |= {f"pool.nets.{name}": t for name, t in part(tensors, "pool.nets.").items()}
    ours |= {f"out.{name}": t for name, t in part(tensors, "nets.3.").items()}
    known = ("backbone.nets.", "pool.nets.", "nets.0.", "nets.1.", "nets.3.")
    constants = ("pool.temperature", "pool.pos_x", "pool.pos_y")
    unknown = [n for n in tensors if not str(n).startswith(known) and n not in constants]
    if unknown or "pool.nets.weight" not in ours or "out.weight" not in ours:
        raise CheckpointError(
            f"{where}: an image encoder other than a ResNet with a spatial softmax and a linear "
            f"map: {unknown[:4] or sorted(ours)[:4]}"
        )
    return encoder_options(ours, where), ours


def crop_options(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The crop that robomimic's randomizer makes in evaluation, from an encoder's configuration.

    Raises:
        CheckpointError: If it is another randomizer.
    """
    name = config.get("obs_randomizer_class")
    if name is None:
        return {"crop": None}
    options = config.get("obs_randomizer_kwargs")
    if name != "CropRandomizer" or not isinstance(options, Mapping):
        raise CheckpointError(f"{where}: images are randomized by {name!r}; only CropRandomizer is")
    return {"crop": [options.get("crop_height"), options.get("crop_width")]}
