"""How samplers are run on a network: what they are handed, and call by call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from asd_policy.networks import DenoisingNetwork
from asd_policy.networks.linear import Packs, packed_weights
from asd_policy.sampling import (
    ChunkNoise,
    CleanPrediction,
    Denoise,
    GaussianChain,
    Prior,
    Sampler,
    SampleResult,
    sample,
)

Precision = Literal["default", "bfloat16"]

_BLOCK = 256
"""Most rows that a CPU evaluates at once."""


class Model(Protocol):
    """What denoises, given a condition that was made ready once for a chunk."""

    def given(self, embedded: Tensor) -> Denoise:
        """The model of conditions ``embed`` has made ready."""
        ...

    def embed(self, condition: Tensor) -> Tensor:
        """Make N conditions ``(N, C)`` ready, once for a chunk."""
        ...


class IdleModel:
    """A model that costs nothing: what is left of a round is drafting and verifying."""

    def given(self, embedded: Tensor) -> Denoise:
        """Always predicts zeros."""
        return lambda x, step, chain_index: torch.zeros_like(x)

    def embed(self, condition: Tensor) -> Tensor:
        """Nothing to make ready."""
        return condition


class NetworkModel:
    """A network with the tables of its steps.

    Args:
        network: The network.
        chain: The reverse process.
        clean: Makes predictions of its outputs.
        device: Where to run.
        precision: How to compute.
    """

    def __init__(
        self,
        network: nn.Module,
        chain: GaussianChain,
        clean: CleanPrediction,
        device: torch.device,
        precision: Precision = "default",
    ) -> None:
        self._bfloat16 = precision == "bfloat16"
        self._network = cast(DenoisingNetwork, network.to(device).eval())
        self._clean = clean
        self._device = device
        self._packs: Packs = {}
        with torch.inference_mode():
            times = chain.network_time.to(device)
            if times.is_floating_point():
                times = times.float()
            self._step_embeddings = self._network.embed_steps(times)

    def given(self, embedded: Tensor) -> Denoise:
        """The model of conditions ``embed`` has made ready."""

        def evaluate(x: Tensor, step: Tensor, chain_index: Tensor) -> Tensor:
            autocast = torch.autocast(
                self._device.type, torch.bfloat16, self._bfloat16, cache_enabled=False
            )
            with packed_weights(self._packs), autocast:
                output = self._network.denoise(
                    self._clean.network_input(x, step),
                    self._step_embeddings[step],
                    embedded[chain_index],
                )
            return self._clean(x, output.to(x.dtype), step)

        if self._device.type != "cpu":
            return evaluate
        return lambda x, step, chain_index: _in_blocks(evaluate, x, step, chain_index)

    def embed(self, condition: Tensor) -> Tensor:
        """Make N conditions ``(N, C)`` ready, once for a chunk."""
        if self._device.type == "cpu":
            # Matrix products on the CPU round otherwise for other numbers of rows; one by one, an
            # episode's actions do not depend on the episodes that happen to plan with it.
            return torch.cat([self._network.embed_condition(row) for row in condition.split(1)])
        return self._network.embed_condition(condition)


def _in_blocks(evaluate: Denoise, x: Tensor, step: Tensor, chain_index: Tensor) -> Tensor:
    """Evaluate R rows in blocks of a few sizes, which no row's result depends on.

    For every number of rows oneDNN makes kernels of its own, in milliseconds, and keeps them, in a
    megabyte a layer; and what many rows leave for the next layer fits no cache.
    """
    parts = []
    for first in range(0, max(len(x), 1), _BLOCK):
        block = [tensor[first : first + _BLOCK] for tensor in (x, step, chain_index)]
        rows = len(block[0])
        extra = block_rows(rows) - rows
        if extra:
            block = [torch.cat([tensor, tensor[-1:].expand_as(tensor[:extra])]) for tensor in block]
        parts.append(evaluate(*block)[:rows])
    return torch.cat(parts)


def block_rows(rows: int) -> int:
    """How many rows are evaluated for so many: the next number of four binary digits and zeros."""
    unit = 1 << max(rows.bit_length() - 4, 0)
    return -(-rows // unit) * unit


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a chunk's sampling depends on.

    Attributes:
        condition: Normalised, ``(N, C)``.
        noise: On the device.
        prior: What is known before; its draft model is not used.
    """

    condition: Tensor
    noise: ChunkNoise
    prior: Prior


class Runner(Protocol):
    """Runs a sampler on a model: call by call, or by replaying graphs."""

    def __call__(
        self,
        chain: GaussianChain,
        sampler: Sampler,
        model: Model,
        draft_model: Model | None,
        inputs: Inputs,
    ) -> SampleResult:
        """Sample the inputs' chains."""
        ...

    def prepared(self, action: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """An action on a device as this runner would do it, to be repeated."""
        ...


class EagerRunner:
    """Call by call: what always works."""

    def __call__(
        self,
        chain: GaussianChain,
        sampler: Sampler,
        model: Model,
        draft_model: Model | None,
        inputs: Inputs,
    ) -> SampleResult:
        """Sample the inputs' chains."""
        prior = inputs.prior
        if draft_model is not None:
            drafting = draft_model.given(draft_model.embed(inputs.condition))
            prior = replace(prior, draft_model=drafting)
        denoise = model.given(model.embed(inputs.condition))
        return sample(denoise, chain, inputs.noise, sampler, prior)

    def prepared(self, action: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """The action itself."""
        return action
