"""Noise streams keyed by (seed, repeat, chunk, step).

A chunk's noise never depends on the place of its episode in a batch, on the worker that runs it or
on the sampler, so that samplers are compared in pairs, on the same randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asd_policy.errors import SamplerError


@dataclass(frozen=True, eq=False)
class ChunkNoise:
    """All the randomness that sampling N chains can use.

    Attributes:
        initial: Standard normal, ``(N, *D)``: state ``x_0`` before its scaling.
        steps: Standard normal ``z_j``, ``(N, K, *D)``.
        uniforms: ``u_j`` in (0, 1], ``(N, K)``, of the accept tests.
        redraw: Gives further blocks for the same chains by their number, independent of this one
            and of each other; only some samplers need them.
    """

    initial: Tensor
    steps: Tensor
    uniforms: Tensor
    redraw: Callable[[int], ChunkNoise] | None = None

    def __post_init__(self) -> None:
        """Refuse tensors whose shapes disagree."""
        n, k = self.uniforms.shape
        shape = tuple(self.initial.shape[1:])
        if self.initial.shape[0] != n or tuple(self.steps.shape) != (n, k, *shape):
            raise SamplerError(
                f"noise shapes disagree: initial {tuple(self.initial.shape)}, steps "
                f"{tuple(self.steps.shape)}, uniforms {tuple(self.uniforms.shape)}; expected "
                "(N, *D), (N, K, *D) and (N, K)"
            )

    @classmethod
    def stack(cls, blocks: Sequence[ChunkNoise]) -> ChunkNoise:
        """The noise of several blocks as one, chains in the order given."""
        return cls(
            torch.cat([block.initial for block in blocks]),
            torch.cat([block.steps for block in blocks]),
            torch.cat([block.uniforms for block in blocks]),
            None
            if any(block.redraw is None for block in blocks)
            else lambda number: cls.stack([block.redrawn(number) for block in blocks]),
        )

    def __getitem__(self, chains: slice) -> ChunkNoise:
        """The noise of some of the chains."""
        redraw = self.redraw
        return ChunkNoise(
            self.initial[chains],
            self.steps[chains],
            self.uniforms[chains],
            None if redraw is None else lambda number: redraw(number)[chains],
        )

    def redrawn(self, number: int) -> ChunkNoise:
        """A further block of noise for the same chains.

        Raises:
            SamplerError: If this noise cannot be drawn again.
        """
        if self.redraw is None:
            raise SamplerError(
                "this sampler draws noise afresh: give it noise of a NoiseStream, or a ChunkNoise "
                "with redraw=…"
            )
        return self.redraw(number).to(self.initial.device)

    def to(self, device: torch.device) -> ChunkNoise:
        """The same noise on a device."""
        return ChunkNoise(
            self.initial.to(device, non_blocking=True),
            self.steps.to(device, non_blocking=True),
            self.uniforms.to(device, non_blocking=True),
            self.redraw,
        )


@dataclass(frozen=True)
class NoiseStream:
    """The noise of one episode.

    Attributes:
        seed: The episode's seed, a non-negative integer.
        repeat: Which of several runs of the same seed, a non-negative integer.
    """

    seed: int
    repeat: int = 0

    def __post_init__(self) -> None:
        """Refuse keys that NumPy would refuse later, in words of its own."""
        for name in ("seed", "repeat"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise SamplerError(f"{name}: expected a non-negative integer, got {value!r}")

    def chunk(self, index: int, num_steps: int, shape: Sequence[int]) -> ChunkNoise:
        """The noise of one chunk as a batch of one chain, on the CPU.

        Args:
            index: Which chunk of the episode, from 0.
            num_steps: K. The noise of step j is the same whatever K.
            shape: D, the shape of one state.
        """
        return self._block((int(self.repeat), index), num_steps, shape)

    def _block(self, key: tuple[int, ...], num_steps: int, shape: Sequence[int]) -> ChunkNoise:
        """The noise under a spawn key; that of ``redraw`` hangs below it."""
        size = math.prod(shape)
        # Philox is counter-based, and its streams under different spawn keys are independent.
        normal, uniform = (
            np.random.Generator(
                np.random.Philox(np.random.SeedSequence(int(self.seed), spawn_key=(*key, kind)))
            )
            for kind in (0, 1)
        )
        # Step by step in one draw: row 0 is x_0, row j + 1 is z_j.
        values = torch.from_numpy(normal.standard_normal((num_steps + 1, size), dtype=np.float32))
        # random() is in [0, 1); 1 - random() is never 0, so that its logarithm is finite.
        uniforms = torch.from_numpy(1 - uniform.random(num_steps, dtype=np.float32))
        return ChunkNoise(
            values[0].reshape(1, *shape),
            values[1:].reshape(1, num_steps, *shape),
            uniforms[None],
            lambda number: self._block((*key, 2, number), num_steps, shape),
        )
