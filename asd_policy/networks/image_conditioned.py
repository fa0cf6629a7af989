"""A denoising network whose condition holds images, which are encoded once for a chunk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from asd_policy.networks.image_encoder import ImageEncoder


@dataclass(frozen=True)
class Entry:
    """A part of a frame's condition.

    Attributes:
        shape: ``(values,)`` that the network sees as they are, or the ``(C, H, W)`` of an image.
    """

    shape: tuple[int, ...]

    @property
    def is_image(self) -> bool:
        """Whether it is encoded."""
        return len(self.shape) == 3


class ImageConditioned(nn.Module):
    """A network behind encoders of the images that its condition holds.

    To the rest it is a ``DenoisingNetwork`` whose conditions are longer.

    Args:
        network: The network proper, conditioned on each frame's values and features.
        entries: What a frame's condition consists of, in order.
        obs_horizon: To, frames in a condition.
        shared: Whether one encoder serves all images.
        options: Of each ``ImageEncoder``.

    Raises:
        ValueError: If an encoder cannot be built so.
    """

    def __init__(
        self,
        network: nn.Module,
        entries: Sequence[Entry],
        obs_horizon: int,
        shared: bool,
        **options: Any,
    ) -> None:
        super().__init__()
        images = [entry.shape for entry in entries if entry.is_image]
        if shared and len(set(images)) > 1:
            raise ValueError(f"one encoder for images of different shapes {sorted(set(images))}")
        self.entries, self.obs_horizon, self.shared = tuple(entries), obs_horizon, shared
        # In this order training begins as without images: the network draws its weights first.
        self.network = network
        self.encoders = nn.ModuleList(
            ImageEncoder(shape, **options) for shape in (images[:1] if shared else images)
        )

    def encode(self, condition: Tensor) -> Tensor:
        """Conditions ``(B, To * values)`` with features in the place of images, ``(B, To * F)``."""
        sizes = [math.prod(entry.shape) for entry in self.entries]
        parts = condition.unflatten(1, (self.obs_horizon, -1)).split(sizes, dim=2)
        encoders = iter(self.encoders)
        encoder: nn.Module | None = None
        seen = []
        for entry, part in zip(self.entries, parts, strict=True):
            if entry.is_image:
                encoder = next(encoders, encoder)
                images = part.flatten(0, 1).unflatten(1, entry.shape)
                part = cast(nn.Module, encoder)(images).unflatten(0, (-1, self.obs_horizon))
            seen.append(part)
        return torch.cat(seen, dim=2).flatten(1)

    def embed_steps(self, step: Tensor) -> Tensor:
        """As the network's."""
        return self.network.embed_steps(step)  # type: ignore[operator]

    def embed_condition(self, condition: Tensor) -> Tensor:
        """Encode the images, and embed as the network does: ``(B, To * values)`` to ``(B, F)``."""
        return self.network.embed_condition(self.encode(condition))  # type: ignore[operator]

    def denoise(self, sample: Tensor, step_embedding: Tensor, condition: Tensor) -> Tensor:
        """As the network's."""
        return self.network.denoise(sample, step_embedding, condition)  # type: ignore[operator]

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """As the network's, from conditions with images ``(B, To * values)``."""
        return self.network(sample, timestep, self.encode(condition))
