"""The residual network of torchvision with basic blocks, up to its last feature map.

Module and parameter names are those of ``torchvision.models.resnet18`` and ``resnet34``, from which
published image policies take their backbones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from asd_policy.networks.sizes import MOST_LAYERS

Norm = Literal["group", "batch"]

MOST_WEIGHTS = 1 << 27
"""Six times a ResNet-34: a hostile file must not make a loader allocate without end."""
MOST_CHANNELS = 4096
"""Widest layer."""


def whole_numbers(
    name: str, values: Any, most: Sequence[int], *, least: int = 1
) -> tuple[int, ...]:
    """An option that is a list of whole numbers, each from ``least`` to its ``most``.

    Raises:
        ValueError: If it is anything else.
    """
    fits = isinstance(values, (list, tuple)) and len(values) == len(most)
    if not fits or any(
        type(value) is not int or not least <= value <= top
        for value, top in zip(values, most, strict=True)
    ):
        raise ValueError(
            f"{name}: expected {len(most)} whole numbers from {least} to at most {tuple(most)}, "
            f"got {values!r}"
        )
    return tuple(values)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection around them (He et al. 2016, figure 2)."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), norm(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, channels, ⌈H / stride⌉, ⌈W / stride⌉)``."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x), inplace=True)


class ResNet(nn.Module):
    """ResNet-18 (or 34, or narrower) without its pooling and its classifier.

    Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), as torchvision
    builds it: a 7x7 convolution and a max pooling, each of stride 2, then four stages of blocks of
    which all but the first halve the resolution. The initial weights are torchvision's too.

    Args:
        channels: Channels of an image.
        widths: Channels of the four stages; those of the first are the stem's too.
        blocks: Blocks in each stage: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34.
        norm: "batch" is torchvision's BatchNorm; "group" is what published policies put in its
            place, a GroupNorm of ``width // 16`` groups.

    Raises:
        ValueError: Naming the option that is out of bounds, before anything is allocated.
    """

    def __init__(
        self,
        channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        widths = whole_numbers("widths", widths, [MOST_CHANNELS] * 4)
        blocks = whole_numbers("blocks", blocks, [MOST_LAYERS] * 4)
        _check(channels, widths, blocks, norm)

        def make_norm(width: int) -> nn.Module:
            return nn.GroupNorm(width // 16, width) if norm == "group" else nn.BatchNorm2d(width)

        def stage(narrow: int, width: int, count: int, stride: int) -> nn.Sequential:
            first = BasicBlock(narrow, width, stride, make_norm)
            return nn.Sequential(
                first, *(BasicBlock(width, width, 1, make_norm) for _ in range(count - 1))
            )

        self.conv1 = nn.Conv2d(channels, widths[0], 7, 2, 3, bias=False)
        self.bn1 = make_norm(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(widths[0], widths[0], blocks[0], 1)
        self.layer2 = stage(widths[0], widths[1], blocks[1], 2)
        self.layer3 = stage(widths[1], widths[2], blocks[2], 2)
        self.layer4 = stage(widths[2], widths[3], blocks[3], 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, channels, H, W)`` to features ``(B, widths[-1], ⌈H/32⌉, ⌈W/32⌉)``."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _check(channels: int, widths: Sequence[int], blocks: Sequence[int], norm: str) -> None:
    if norm not in get_args(Norm):
        raise ValueError(f"norm: expected one of {get_args(Norm)}, got {norm!r}")
    for width in widths if norm == "group" else ():
        if width < 16 or width % (width // 16):
            raise ValueError(f"widths: expected each to split into width // 16 groups, got {width}")
    weights = 49 * channels * widths[0]
    weights += sum(18 * w * w * count for w, count in zip(widths, blocks, strict=True))
    if weights > MOST_WEIGHTS:
        raise ValueError(
            f"widths and blocks: expected at most {MOST_WEIGHTS} weights, got {weights} from "
            f"{tuple(widths)} and {tuple(blocks)}"
        )
