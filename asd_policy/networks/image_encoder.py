"""The image encoders of published diffusion policies: a crop, a ResNet, a pooling, a linear map.

One class covers robomimic's ``VisualCore``, LeRobot's ``DiffusionRgbEncoder`` and the
``MultiImageObsEncoder`` of Chi et al., whose weights load after renaming alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asd_policy.networks.resnet import MOST_CHANNELS, Norm, ResNet, whole_numbers

Pool = Literal["spatial_softmax", "average"]

MOST_PIXELS = 2048
"""Longest side of an image."""
WIDTHS, FEATURE_DIM = (64, 128, 256, 512), 64
"""An encoder's own, where its options name none: ResNet-18's."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SpatialSoftmax(nn.Module):
    """Expected image positions under the softmax of each of several feature maps.

    Source: Finn et al., "Deep Spatial Autoencoders for Visuomotor Learning" (ICRA 2016), as
    robomimic has it. The positions and the temperature are constants, which are not saved.

    Args:
        channels: Channels of the features.
        size: Height and width of the features.
        keypoints: Maps, each a linear combination of the channels.
        temperature: Divides the maps before the softmax.
    """

    positions: Tensor

    def __init__(
        self, channels: int, size: tuple[int, int], keypoints: int, temperature: float = 1.0
    ) -> None:
        super().__init__()
        # For fewer than 16 rows PyTorch sends a plain 1x1 convolution on the CPU to another kernel,
        # rounded otherwise; a dilation changes nothing in a kernel of one tap but keeps oneDNN.
        self.nets = nn.Conv2d(channels, keypoints, 1, dilation=2)
        self.temperature = temperature
        x, y = np.meshgrid(np.linspace(-1, 1, size[1]), np.linspace(-1, 1, size[0]))
        self.register_buffer("positions", _constant([x.ravel(), y.ravel()]), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to ``(B, 2 * keypoints)``: x and y of the first, and so on.

        Positions are from -1 (left, top) to 1 (right, bottom).
        """
        attention = F.softmax(self.nets(features).flatten(2) / self.temperature, dim=-1)
        return (attention.unsqueeze(2) * self.positions).sum(-1).flatten(1)


class Framing(nn.Module):
    """Resize, crop and ImageNet's normalisation, each optional; see ``ImageEncoder``."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        resize: Sequence[int] | None,
        antialias: bool,
        crop: Sequence[int] | None,
        crop_corner: Sequence[int] | None,
        random_crop: bool,
        imagenet_norm: bool,
    ) -> None:
        super().__init__()
        flags = {"antialias": antialias, "random_crop": random_crop, "imagenet_norm": imagenet_norm}
        for name, flag in flags.items():
            _one_of(name, flag, (False, True))
        if imagenet_norm and shape[0] != 3:
            raise ValueError(f"imagenet_norm: expected images of 3 channels, got {shape[0]}")
        if crop is None and crop_corner is not None:
            raise ValueError(f"crop_corner: expected None without a crop, got {crop_corner!r}")
        self.antialias, self.random_crop, self.imagenet_norm = antialias, random_crop, imagenet_norm
        height, width = shape[1:]
        self.resize = self.crop = None
        if resize is not None:
            self.resize = height, width = whole_numbers("resize", resize, [MOST_PIXELS] * 2)
        if crop is not None:
            self.crop = whole_numbers("crop", crop, (height, width))
            # How far down and right a crop may begin.
            self.last = (height - self.crop[0], width - self.crop[1])
            # Half a pixel is rounded to even, as torchvision does.
            corner = [round(n / 2) for n in self.last] if crop_corner is None else crop_corner
            self.corner = whole_numbers("crop_corner", corner, self.last, least=0)
            height, width = self.crop
        self.size = (height, width)
        """Height and width of what comes out."""
        self.register_buffer("mean", _constant(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", _constant(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to ``(B, C, *size)``."""
        if self.resize is not None:
            images = F.interpolate(
                images, self.resize, mode="bilinear", align_corners=False, antialias=self.antialias
            )
        if self.crop is not None:
            if self.training and self.random_crop:
                images = self._random_crops(images)
            else:
                (top, left), (height, width) = self.corner, self.crop
                images = images[:, :, top : top + height, left : left + width]
        return (images - self.mean) / self.std if self.imagenet_norm else images

    def _random_crops(self, images: Tensor) -> Tensor:
        places = [
            torch.randint(last + 1, (len(images), 1, 1, 1), device=images.device)
            + torch.arange(side, device=images.device)
            for last, side in zip(self.last, self.size, strict=True)
        ]
        rows, columns = places[0].transpose(2, 3), places[1]
        image = torch.arange(len(images), device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
        return images[image, channel, rows, columns]


class ImageEncoder(nn.Module):
    """Features of an image: resize, crop, ResNet, pooling, linear map and ReLU.

    Sources: robomimic's ``VisualCore`` with the ReLU that its ``ObservationEncoder`` appends (also
    the "hybrid" image policies of Chi et al. 2023), LeRobot's ``DiffusionRgbEncoder``, and Chi's
    ``MultiImageObsEncoder``. With a crop, the defaults are the first. The weights are those of
    ``backbone`` (a torchvision ResNet), ``pool.nets`` and ``out``.

    In ``eval()`` the crop is fixed, in the centre. In ``train()`` each image has a crop of its own,
    drawn by torch's global generator with equal chances for all positions, unless ``random_crop``
    is off. All arguments can be stored as JSON.

    Args:
        shape: Channels, height and width of an image.
        widths: Channels of the ResNet's four stages; those of the first are the stem's too.
        blocks: Blocks in each stage: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34.
        norm: "group" is a GroupNorm of ``width // 16`` groups in the place of each "batch" norm,
            whose statistics are frozen in ``eval()``.
        resize: Height and width to resize to before the crop, bilinear, corners not aligned.
        antialias: Whether resizing smooths where it shrinks. torchvision's ``Resize`` does so to
            tensors by default since 0.17 (LeRobot) and did not before (Chi et al. have 0.13).
        crop: Height and width of the crop.
        crop_corner: Top and left of the crop in ``eval()``. None is torchvision's centre, which
            rounds half a pixel to even; robomimic 0.3 and newer round it down.
        random_crop: Whether the crop is random in ``train()``.
        imagenet_norm: Whether to subtract ImageNet's mean from the values as they come and divide
            by its deviation. (It is meant for [0, 1]; Chi et al. apply it to [-1, 1].)
        pool: "spatial_softmax" finds keypoints; "average" is the mean over the feature map.
        keypoints: Keypoints of the spatial softmax.
        temperature: Temperature of the spatial softmax.
        feature_dim: Outputs of the linear map. None leaves it out, for average pooling alone, whose
            values a ReLU would not change.

    Attributes:
        shape: Channels, height and width of an image.
        features: Number of values that an image becomes.

    Raises:
        ValueError: Naming the option that is out of bounds, before anything is allocated.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        widths: Sequence[int] = WIDTHS,
        blocks: Sequence[int] = (2, 2, 2, 2),
        norm: Norm = "group",
        resize: Sequence[int] | None = None,
        antialias: bool = False,
        crop: Sequence[int] | None = None,
        crop_corner: Sequence[int] | None = None,
        random_crop: bool = True,
        imagenet_norm: bool = False,
        pool: Pool = "spatial_softmax",
        keypoints: int = 32,
        temperature: float = 1.0,
        feature_dim: int | None = FEATURE_DIM,
    ) -> None:
        super().__init__()
        channels, height, width = whole_numbers(
            "shape", shape, (MOST_CHANNELS, MOST_PIXELS, MOST_PIXELS)
        )
        self.shape = (channels, height, width)
        _one_of("pool", pool, get_args(Pool))
        whole_numbers("keypoints", [keypoints], [MOST_CHANNELS])
        if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
            raise ValueError(f"temperature: expected a positive number, got {temperature!r}")
        if feature_dim is not None or pool != "average":
            whole_numbers("feature_dim", [feature_dim], [MOST_CHANNELS])
        self.frame = Framing(
            self.shape, resize, antialias, crop, crop_corner, random_crop, imagenet_norm
        )
        height, width = (math.ceil(side / 32) for side in self.frame.size)
        if pool == "spatial_softmax" and height * width == 1:
            raise ValueError(
                "spatial_softmax: expected a side of more than 32 pixels, of which the ResNet "
                f"leaves several positions to tell apart, got {self.frame.size}"
            )
        self.backbone = ResNet(channels, widths, blocks, norm)
        self.pool: nn.Module
        if pool == "average":
            pooled = widths[-1]
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        else:
            pooled = 2 * keypoints
            self.pool = SpatialSoftmax(widths[-1], (height, width), keypoints, temperature)
        self.out = None if feature_dim is None else nn.Linear(pooled, feature_dim)
        self.features: int = pooled if feature_dim is None else feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """Encode images, which come scaled or normalised as the policy was trained.

        Args:
            images: ``(B, *shape)``, floating point.

        Returns:
            Features, ``(B, features)``. On the CPU, in ``eval()`` and without gradients, a row's
            result does not depend on the rows beside it, bit for bit.

        Raises:
            ValueError: If the images have another shape.
        """
        if images.shape[1:] != self.shape:
            raise ValueError(f"expected images (B, {self.shape}), got {tuple(images.shape)}")
        x = self.frame(images)
        alone = len(x) == 1 and x.device.type == "cpu"
        if alone and not self.training and not torch.is_grad_enabled():
            # PyTorch has another kernel for the small feature maps of a single image, rounded
            # otherwise.
            return self._encode(torch.cat([x, x]))[:1]
        return self._encode(x)

    def _encode(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.backbone(x))
        if self.out is None:
            return pooled
        if pooled.device.type != "cpu":
            return F.relu(self.out(pooled))
        # As a convolution (dilated, see SpatialSoftmax): a matrix product rounds by its rows.
        weight, bias = self.out.weight, self.out.bias
        return F.relu(F.conv1d(pooled[:, :, None], weight[:, :, None], bias, dilation=2)[:, :, 0])


def encoded_features(options: Mapping[str, Any]) -> int:
    """Number of values that an image becomes in an ``ImageEncoder`` of such options.

    Raises:
        ValueError: If there is no such encoder.
    """
    dim = options.get("feature_dim", FEATURE_DIM)
    if dim is None:
        return whole_numbers("widths", options.get("widths", WIDTHS), [MOST_CHANNELS] * 4)[-1]
    return whole_numbers("feature_dim", [dim], [MOST_CHANNELS])[0]


def _constant(values: Any) -> Tensor:
    """A float32 tensor that holds its values even where modules are built without memory."""
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _one_of(name: str, value: Any, choices: Sequence[Any]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name}: expected one of {tuple(choices)}, got {value!r}")
