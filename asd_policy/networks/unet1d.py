"""The conditional 1-D U-Net of Diffusion Policy (Chi et al., RSS 2023), parameter for parameter.

Module and parameter names are those of the original ``ConditionalUnet1D``, so that published
weights load unchanged. The arithmetic is arranged for sampling: each residual block modulates its
features with a linear function of ``mish([step embedding, condition])``; because Mish acts entry
by entry, that linear splits into a part that depends on the step alone (tabulated once per
checkpoint) and one that depends on the observation alone (computed once per chunk).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SinusoidalPosEmb(nn.Module):
    """Sinusoidal embedding of a diffusion step, sines first.

    Args:
        dim: Size of the embedding (even).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, step: Tensor) -> Tensor:
        """Embed steps of shape ``(B,)`` as ``(B, dim)``."""
        half = self.dim // 2
        frequencies = torch.exp(
            torch.arange(half, device=step.device) * -(math.log(10000) / (half - 1))
        )
        angles = step[:, None].to(frequencies.dtype) * frequencies[None, :]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Conv1dBlock(nn.Module):
    """Conv1d, GroupNorm, Mish."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, n_groups: int = 8):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, out_channels),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, T)`` to ``(B, out_channels, T)``."""
        return self.block(x)


def pointwise_conv(in_channels: int, out_channels: int) -> nn.Conv1d:
    """A 1x1 convolution whose rows come out bit-identical whatever the size of the batch.

    For fewer than 16 rows PyTorch sends a plain 1x1 convolution on the CPU to another kernel, with
    another order of summation. A dilation changes nothing in a kernel of one tap but keeps oneDNN
    in charge at every batch size (and is quicker there).
    """
    return nn.Conv1d(in_channels, out_channels, 1, dilation=2)


class Downsample1d(nn.Module):
    """Halve the time axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, dim, T)`` to ``(B, dim, T / 2)``."""
        return self.conv(x)


class Upsample1d(nn.Module):
    """Double the time axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(dim, dim, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, dim, T)`` to ``(B, dim, 2 T)``."""
        return self.conv(x)


class ConditionalResidualBlock1D(nn.Module):
    """Two convolution blocks with FiLM between them and a residual connection around them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_dim: int,
        kernel_size: int,
        n_groups: int,
        cond_predict_scale: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                Conv1dBlock(in_channels, out_channels, kernel_size, n_groups),
                Conv1dBlock(out_channels, out_channels, kernel_size, n_groups),
            ]
        )
        self.cond_predict_scale = cond_predict_scale
        self.film_dim = out_channels * (2 if cond_predict_scale else 1)
        # Index 1 keeps the original's name ``cond_encoder.1``: its index 0 is the Mish.
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, self.film_dim))
        self.residual_conv = (
            pointwise_conv(in_channels, out_channels)
            if in_channels != out_channels
            else nn.Identity()
        )

    @property
    def film_linear(self) -> nn.Linear:
        """The linear map from activated step embedding and condition to FiLM."""
        return cast(nn.Linear, self.cond_encoder[1])

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """Map ``(B, in_channels, T)`` to ``(B, out_channels, T)`` under FiLM ``(B, film_dim)``."""
        out = self.blocks[0](x)
        film = film[:, :, None]
        if self.cond_predict_scale:
            scale, bias = film.chunk(2, dim=1)
            out = torch.addcmul(bias, scale, out)
        else:
            out = out + film
        return self.blocks[1](out) + self.residual_conv(x)


class ConditionalUnet1D(nn.Module):
    """Noise-prediction U-Net over a chunk of actions, conditioned on the step and a vector.

    Source: Chi et al., "Diffusion Policy" (RSS 2023), ``ConditionalUnet1D`` without local
    conditioning. Its quirks are kept because the weights depend on them: FiLM is
    ``scale * x + bias`` (not ``1 + scale``); every up level doubles the time axis; the first
    level's skip connection is never consumed; the final block always has 8 groups.

    Args:
        input_dim: Dimensions of one action.
        global_cond_dim: Size of the conditioning vector.
        diffusion_step_embed_dim: Size of the step embedding.
        down_dims: Channels of each level.
        kernel_size: Kernel of the convolution blocks (odd).
        n_groups: Groups of the GroupNorms.
        cond_predict_scale: Whether FiLM has a scale besides its bias.

    Raises:
        ValueError: If the sizes make no network.
    """

    def __init__(
        self,
        input_dim: int,
        global_cond_dim: int,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        cond_predict_scale: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(down_dims, Sequence) or isinstance(down_dims, str) or not down_dims:
            raise ValueError(f"down_dims: expected the channels of each level, got {down_dims!r}")
        if n_groups < 1:
            raise ValueError(f"n_groups: expected at least one, got {n_groups}")
        embed = diffusion_step_embed_dim
        self.input_dim = input_dim
        self.global_cond_dim = global_cond_dim
        self.step_embed_dim = embed
        self.down_dims = tuple(down_dims)

        def block(in_channels: int, out_channels: int) -> ConditionalResidualBlock1D:
            return ConditionalResidualBlock1D(
                in_channels,
                out_channels,
                embed + global_cond_dim,
                kernel_size,
                n_groups,
                cond_predict_scale,
            )

        # Registration order is the original's: positional EMA lists depend on it.
        middle = down_dims[-1]
        self.mid_modules = nn.ModuleList([block(middle, middle), block(middle, middle)])
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalPosEmb(embed),
            nn.Linear(embed, embed * 4),
            nn.Mish(),
            nn.Linear(embed * 4, embed),
        )
        channels = [input_dim, *down_dims]
        levels = list(zip(channels[:-1], channels[1:], strict=True))
        self.up_modules = nn.ModuleList(
            nn.ModuleList([block(2 * wide, narrow), block(narrow, narrow), Upsample1d(narrow)])
            for narrow, wide in reversed(levels[1:])
        )
        self.down_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    block(narrow, wide),
                    block(wide, wide),
                    Downsample1d(wide) if level < len(levels) - 1 else nn.Identity(),
                ]
            )
            for level, (narrow, wide) in enumerate(levels)
        )
        self.final_conv = nn.Sequential(
            Conv1dBlock(down_dims[0], down_dims[0], kernel_size),
            pointwise_conv(down_dims[0], input_dim),
        )

    @staticmethod
    def _levels(levels: nn.ModuleList) -> list[list[nn.Module]]:
        """Each level as its two residual blocks and its change of resolution."""
        return [list(cast(nn.ModuleList, level)) for level in levels]

    def _residual_blocks(self) -> list[ConditionalResidualBlock1D]:
        """The residual blocks in the order in which a forward pass meets them."""
        down = [block for level in self._levels(self.down_modules) for block in level[:2]]
        up = [block for level in self._levels(self.up_modules) for block in level[:2]]
        return cast(list[ConditionalResidualBlock1D], [*down, *self.mid_modules, *up])

    def embed_steps(self, step: Tensor) -> Tensor:
        """The step's share of every block's FiLM: ``(B,)`` to ``(B, F)``, biases included."""
        embedded = F.mish(self.diffusion_step_encoder(step))
        return torch.cat(
            [
                F.linear(embedded, linear.weight[:, : self.step_embed_dim], linear.bias)
                for linear in (b.film_linear for b in self._residual_blocks())
            ],
            dim=1,
        )

    def embed_condition(self, global_cond: Tensor) -> Tensor:
        """The condition's share of every block's FiLM: ``(B, global_cond_dim)`` to ``(B, F)``."""
        activated = F.mish(global_cond)
        return torch.cat(
            [
                F.linear(activated, linear.weight[:, self.step_embed_dim :])
                for linear in (b.film_linear for b in self._residual_blocks())
            ],
            dim=1,
        )

    def denoise(self, sample: Tensor, step_embedding: Tensor, condition: Tensor) -> Tensor:
        """Predict from prepared embeddings.

        Args:
            sample: Noisy chunk, ``(B, T, input_dim)``.
            step_embedding: Rows of ``embed_steps``, ``(B, F)``.
            condition: Rows of ``embed_condition``, ``(B, F)``.

        Returns:
            The prediction, ``(B, T, input_dim)``. On the CPU a row's result does not depend on the
            rows beside it, bit for bit.
        """
        if sample.shape[0] == 1 and sample.device.type == "cpu" and not torch.is_grad_enabled():
            # oneDNN has another kernel for a single row: slower than for two, rounded otherwise.
            pair = (t.expand(2, *t.shape[1:]) for t in (sample, step_embedding, condition))
            return self.denoise(*pair)[:1]
        blocks = self._residual_blocks()
        films = iter((step_embedding + condition).split([b.film_dim for b in blocks], dim=1))
        x = sample.transpose(1, 2)
        skips = []
        for first, second, downsample in self._levels(self.down_modules):
            x = second(first(x, next(films)), next(films))
            skips.append(x)
            x = downsample(x)
        for middle in self.mid_modules:
            x = middle(x, next(films))
        for first, second, upsample in self._levels(self.up_modules):
            x = torch.cat([x, skips.pop()], dim=1)
            x = upsample(second(first(x, next(films)), next(films)))
        return self.final_conv(x).transpose(1, 2)

    def forward(self, sample: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
        """Predict the noise (or whatever the checkpoint was trained to predict).

        Args:
            sample: Noisy chunk, ``(B, T, input_dim)``; T divisible by ``2 ** (levels - 1)``.
            timestep: Diffusion step of each row as trained, ``(B,)``.
            global_cond: Condition, ``(B, global_cond_dim)``.

        Returns:
            The prediction, ``(B, T, input_dim)``.
        """
        return self.denoise(sample, self.embed_steps(timestep), self.embed_condition(global_cond))
