"""CUDA graphs: a chunk's beginning and each of its rounds is one launch instead of hundreds.

Everything that a graph reads or writes keeps its place in memory: the inputs are copied in, rounds
hand their results on in place, and the host reads positions and windows once a round. A window is
padded to the next of a few widths, so that few graphs serve all rounds; padded rows are evaluated
for nothing, and are not counted as evaluations.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from asd_policy.policies.runners import EagerRunner, Inputs, Model
from asd_policy.sampling import (
    ChunkNoise,
    Ddim,
    DpmSolver,
    GaussianChain,
    Sampler,
    SampleResult,
    Sequential,
    Speculative,
    sample,
)
from asd_policy.sampling.speculative import SpeculativeState, run_rounds

Capture = Callable[[Callable[[], None]], Callable[[], None]]

_WIDTHS = (1, 4, 8, 16, 24, 32, 48, 64, 96)
_KEPT = 32
"""Programs, each with memory of its own: as many as a comparison of samplers goes around."""
_WARM_UP = 3


def capture_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Record what a function launches on the current device; returns what launches it all again."""
    # Kernels are chosen and libraries set up on first use, which cannot be recorded. A stream of
    # its own: PyTorch's default for captures stays on the device that captured first.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # What other threads do meanwhile, as a camera's, must not break the recording.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    return graph.replay


class GraphRunner:
    """A ``Runner`` that captures a sampler on first use for each number of chains, and replays it.

    What cannot be captured (ParaDiGMS, block verification: the host takes part in their rounds)
    runs call by call.

    Args:
        capture: Turns a function into its replay.
    """

    def __init__(self, capture: Capture = capture_graph) -> None:
        self._capture = capture
        self._eager = EagerRunner()
        self._programs: OrderedDict[tuple[Model, str, int], _Straight | _Rounds] = OrderedDict()
        # Policies of several threads share a planner, and a program has one place for inputs.
        self._lock = threading.Lock()

    def __call__(
        self,
        chain: GaussianChain,
        sampler: Sampler,
        model: Model,
        draft_model: Model | None,
        inputs: Inputs,
    ) -> SampleResult:
        """Sample, capturing first if this sampler is new here for so many chains."""
        # Streams and graphs are of the current device, which need not be the policy's.
        with self._lock, torch.cuda.device_of(inputs.condition):
            n = len(inputs.condition)
            if isinstance(sampler, Speculative):
                if not inputs.prior.worth_drafting(chain, sampler, n):
                    sampler = Sequential()
                elif sampler.verifier == "block" or (
                    sampler.draft == "independent" and draft_model is None
                ):
                    return self._eager(chain, sampler, model, draft_model, inputs)
            elif not isinstance(sampler, (Sequential, Ddim, DpmSolver)):
                return self._eager(chain, sampler, model, draft_model, inputs)
            key = (model, str(sampler), n)
            if key not in self._programs:
                if isinstance(sampler, Speculative):
                    program: _Straight | _Rounds = _Rounds(
                        chain, sampler, model, draft_model, inputs, self._capture
                    )
                else:
                    program = _Straight(chain, sampler, model, inputs, self._capture)
                self._programs[key] = program
                # Each program holds memory of its own.
                while len(self._programs) > _KEPT:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(key)
            return self._programs[key](inputs)

    def prepared(self, action: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """The action as a graph."""
        with self._lock, torch.cuda.device_of(torch.empty(0, device=device)):
            return self._capture(action)


class _Straight:
    """A sampler whose calls are always the same: one graph for a whole chunk."""

    def __init__(
        self,
        chain: GaussianChain,
        sampler: Sampler,
        model: Model,
        inputs: Inputs,
        capture: Capture,
    ) -> None:
        self._inputs = _Static(inputs)
        if isinstance(sampler, Sequential):
            chain = _on_device(chain, inputs.condition.device)

        def run() -> None:
            denoise = model.given(model.embed(self._inputs.condition))
            result = sample(denoise, chain, self._inputs.noise, sampler)
            self._x.copy_(result.x)
            self._result = result

        self._x = torch.empty_like(inputs.noise.initial)
        self._replay = capture(run)

    def __call__(self, inputs: Inputs) -> SampleResult:
        self._inputs.fill(inputs)
        self._replay()
        return replace(self._result, x=self._x.clone())


class _Rounds:
    """A speculative sampler: one graph to begin a chunk, and one for rounds of each width."""

    def __init__(
        self,
        chain: GaussianChain,
        sampler: Speculative,
        model: Model,
        draft_model: Model | None,
        inputs: Inputs,
        capture: Capture,
    ) -> None:
        self._inputs = static = _Static(inputs)
        device = inputs.condition.device
        n = len(inputs.condition)
        # A draft model takes its turn within a round, and is not asked for by windows' rows.
        drafting = draft_model if sampler.draft == "independent" else None
        self._state = state = SpeculativeState(chain, sampler, inputs.prior, n, device)
        models = [model] if drafting is None else [model, drafting]
        self._embedded = [each.embed(static.condition) for each in models]
        self._denoise, *other = (
            each.given(embedded) for each, embedded in zip(models, self._embedded, strict=True)
        )
        draft = other[0] if other else None
        state.begin(static.noise, static.previous, static.known, draft)
        self._tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
        self._status = torch.zeros(2, n, dtype=torch.long, device=device)

        def begin() -> None:
            for embedded, each in zip(self._embedded, models, strict=True):
                embedded.copy_(each.embed(static.condition))
            state.begin(static.noise, static.previous, static.known, draft)
            self._keep()

        self._begin = capture(begin)
        # All widths now: a robot must not wait for a capture in the middle of an episode.
        self._widths = [w for w in _WIDTHS if w < state.longest] + [state.longest]
        self._advance = {width: self._captured(width, capture) for width in self._widths}

    def __call__(self, inputs: Inputs) -> SampleResult:
        self._inputs.fill(inputs)
        self._begin()
        result = run_rounds(self._state, self._round, self._read)
        return replace(result, x=result.x.clone())

    def _captured(self, width: int, capture: Capture) -> Callable[[], None]:
        """A round of this width; recording it leaves the chains where they are."""

        def advance() -> None:
            self._state.tensors = self._tensors
            self._state.round(self._denoise, width)
            self._keep()

        before = {name: tensor.clone() for name, tensor in self._tensors.items()}
        replay = capture(advance)
        for name, tensor in before.items():
            self._tensors[name].copy_(tensor)
        return replay

    def _round(self, longest: int, length: np.ndarray) -> None:
        self._advance[next(w for w in self._widths if w >= longest)]()

    def _keep(self) -> None:
        """Put what a beginning or a round has made where the next round looks for it."""
        for name, made in self._state.tensors.items():
            if made is not self._tensors[name]:
                self._tensors[name].copy_(made)
        self._state.tensors = self._tensors
        self._status.copy_(torch.stack([self._state.position, self._state.window]))

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        position, window = self._status.to("cpu", copy=True).numpy()
        return position, np.minimum(window, self._state.num_steps - position)


class _Static:
    """Inputs that keep their place in memory."""

    def __init__(self, inputs: Inputs) -> None:
        noise = inputs.noise
        self.condition = inputs.condition.clone()
        self.noise = ChunkNoise(noise.initial.clone(), noise.steps.clone(), noise.uniforms.clone())
        previous, known = inputs.prior.known(noise.initial)
        self.previous, self.known = previous.clone(), known.clone()

    def fill(self, inputs: Inputs) -> None:
        """Take in another chunk's."""
        self.condition.copy_(inputs.condition)
        for name in ("initial", "steps", "uniforms"):
            getattr(self.noise, name).copy_(getattr(inputs.noise, name))
        previous, known = inputs.prior.known(inputs.noise.initial)
        self.previous.copy_(previous)
        self.known.copy_(known)


def _on_device(chain: GaussianChain, device: torch.device) -> GaussianChain:
    """A chain whose tables are on the device already: copies from the host cannot be recorded."""
    tables: dict[str, Tensor | float] = {
        entry.name: value.to(device) if isinstance(value, Tensor) else value
        for entry in fields(chain)
        for value in [getattr(chain, entry.name)]
    }
    return GaussianChain(**tables)  # type: ignore[arg-type]
