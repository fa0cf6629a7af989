"""Planning without state: a history of observations in, chunks of actions out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asd_policy.errors import CheckpointError, PlanningError
from asd_policy.policies.costs import measured_costs
from asd_policy.policies.expectation import Expectation
from asd_policy.policies.normalizer import Normalizer
from asd_policy.policies.observation import features
from asd_policy.policies.rotation import pose_from_6d
from asd_policy.policies.runners import (
    EagerRunner,
    IdleModel,
    Inputs,
    NetworkModel,
    Precision,
    Runner,
)
from asd_policy.policies.spec import PolicySpec
from asd_policy.sampling import (
    ChunkNoise,
    CleanPrediction,
    CostTable,
    Denoise,
    Gain,
    Prior,
    Sampler,
    SampleResult,
    Speculative,
    WindowPlan,
)


@dataclass(frozen=True, eq=False)
class Planned:
    """Chunks and what they cost.

    Attributes:
        actions: ``(N, Tp, action_dim)`` float32, in the environment's units.
        chunks: The same, normalised: the samples, within the policy's limits.
        result: The sampler's report.
        seconds: Wall-clock time from the raw history to the raw actions.
    """

    actions: NDArray[np.float32]
    chunks: Tensor
    result: SampleResult
    seconds: float


class Planner:
    """A network with its chain and normalisers on a device; shared by any number of policies.

    Args:
        spec: The policy's specification.
        network: A ``DenoisingNetwork`` with its weights.
        normalizers: One for each observation key and one named ``action``.
        device: Where to run.
        gain: What was learned about drafting for this network.
        expectation: Which chunks were learned to expect of it.
        draft_network: A smaller network for the same policy, for ``speculative-independent``.
        runner: How samplers are run; call by call when None.
        precision: How the network computes: ``default`` as PyTorch is set, or ``bfloat16``
            (autocast). Samplers are exact for the network as it computes.

    Raises:
        CheckpointError: If the gain or the expectation is of another chain, or other sizes.
    """

    def __init__(
        self,
        spec: PolicySpec,
        network: nn.Module,
        normalizers: Mapping[str, Normalizer],
        device: torch.device,
        gain: Gain | None = None,
        expectation: Expectation | None = None,
        draft_network: nn.Module | None = None,
        runner: Runner | None = None,
        precision: Precision = "default",
    ) -> None:
        if precision not in get_args(Precision):
            raise CheckpointError(
                f"precision: expected one of {get_args(Precision)}, got {precision!r}"
            )
        self.spec = spec
        self.device = device
        self.chain = spec.build_chain()
        self.chunk_shape = (spec.pred_horizon, spec.planned_dim)
        size = spec.pred_horizon * spec.planned_dim
        if gain is not None and (gain.num_steps, gain.size) != (self.chain.num_steps, size):
            raise CheckpointError(
                f"gain: expected {self.chain.num_steps} steps of size {size}, got "
                f"{gain.num_steps} of size {gain.size}: run `python -m eval.calibrate` again"
            )
        self.gain = None if gain is None else gain.to(device)
        clean = CleanPrediction(self.chain, spec.parametrization, device)
        self._model = NetworkModel(network, self.chain, clean, device, precision)
        self._draft_model = (
            None
            if draft_network is None
            else NetworkModel(draft_network, self.chain, clean, device, precision)
        )
        self._run = runner or EagerRunner()
        self._precision = precision
        entries = [normalizers[e.key].repeated(e.features) for e in spec.observations]
        self._observation = Normalizer(
            torch.cat([n.scale for n in entries]), torch.cat([n.offset for n in entries])
        ).to(device)
        self._action = normalizers["action"].to(device)
        seen = [torch.full((e.features,), not e.image) for e in spec.observations]
        self._seen = torch.cat(seen).repeat(spec.obs_horizon).to(device)
        sizes = (int(self._seen.sum()), size)
        if expectation is not None and expectation.sizes != sizes:
            raise CheckpointError(
                f"expectation: expected observations and chunks of sizes {sizes}, got "
                f"{expectation.sizes}: run `python -m eval.calibrate` again"
            )
        self.expectation = None if expectation is None else expectation.to(device)
        self._limits = (
            None
            if spec.action_limits is None
            else torch.tensor(spec.action_limits, dtype=torch.float32, device=device).unbind(0)
        )
        self._costs: CostTable | None = None
        self._idle_model = IdleModel()
        self._window_plans: dict[tuple[str, int], WindowPlan] = {}

    @torch.inference_mode()
    def denoiser(self, history: NDArray[np.float32]) -> Denoise:
        """The model of N histories ``(N, To, observation_dim)``, for ``sampling.sample``."""
        return self._model.given(self._model.embed(self._condition(history)))

    @torch.inference_mode()
    def state_features(self, history: NDArray[np.float32]) -> Tensor:
        """Normalised observations ``(N, C)`` of N histories, images left out."""
        return self._condition(history)[:, self._seen]

    @torch.inference_mode()
    def expect(
        self, history: NDArray[np.float32], previous: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """What warm starts begin from: the chunks to expect; ``previous`` where none were learned.

        Args:
            history: ``(N, To, observation_dim)``, raw.
            previous: For each the chunk planned before it, as it is seen now, or None.
        """
        if self.expectation is None:
            return previous
        chunks = self.expectation(self.state_features(history), previous)
        return [chunk.view(self.chunk_shape) for chunk in chunks]

    @torch.inference_mode()
    def plan(
        self,
        history: NDArray[np.float32],
        noise: ChunkNoise,
        sampler: Sampler,
        previous: Sequence[Tensor | None] | None = None,
    ) -> Planned:
        """Plan one chunk for each of N histories.

        Args:
            history: ``(N, To, observation_dim)``, oldest frame first, raw values.
            noise: The chunks' noise, on the CPU.
            sampler: How to sample.
            previous: For each history the normalised chunk ``(Tp, planned_dim)`` planned before it,
                as it is seen now (``shifted``), or None; it makes drafts better, never actions
                different in distribution.

        Raises:
            PlanningError: If a planned action is not finite.
            SamplerError: If the sampler lacks something: a gain, a draft network.
        """
        start = time.perf_counter()
        auto = isinstance(sampler, Speculative) and sampler.window == "auto"
        if isinstance(sampler, Speculative) and sampler.warm_start:
            previous = self.expect(history, previous or [None] * len(history))
        prior = Prior(
            self.gain,
            previous,
            costs=self.costs() if auto else None,
            plans=self._window_plans,
        )
        inputs = Inputs(self._condition(history), noise.to(self.device), prior)
        result = self._run(self.chain, sampler, self._model, self._draft_model, inputs)
        chunks = result.x
        if self._limits is not None:
            chunks = chunks.clamp(*self._limits)
        planned = self._action.unnormalize(chunks)
        if self.spec.action_rotation == "rotation_6d":
            planned = pose_from_6d(planned)
        actions = planned.cpu().numpy()
        if not np.isfinite(actions).all():
            raise PlanningError(
                "the planned chunk holds NaN or infinity: the observation is far outside of the "
                "training data, or the weights are damaged"
            )
        return Planned(actions, chunks, result, time.perf_counter() - start)

    def costs(self) -> CostTable:
        """What calls cost on this machine; measured once, in a second or a few, and kept."""
        if self._costs is None:
            history = np.zeros((1, self.spec.obs_horizon, self.spec.observation_dim), np.float32)
            denoise = self.denoiser(history)

            @torch.inference_mode()
            def call(rows: int) -> Callable[[], None]:
                zeros = torch.zeros(rows, dtype=torch.long, device=self.device)
                x = torch.zeros(rows, *self.chunk_shape, device=self.device)

                @torch.inference_mode()
                def action() -> None:
                    denoise(x, zeros, zeros)

                return self._run.prepared(action, self.device)

            circumstances = {
                "network": dict(self.spec.network),
                "chunk_shape": list(self.chunk_shape),
                "obs_horizon": self.spec.obs_horizon,
                "num_steps": self.chain.num_steps,
                "gain": self.gain is not None,
                "precision": self._precision,
                "runner": type(self._run).__name__,
            }
            self._costs = measured_costs(call, self._idle_rounds, circumstances, self.device)
        return self._costs

    @torch.inference_mode()
    def _idle_rounds(self) -> int:
        """Sample a chunk in short windows with a model that costs nothing; the rounds it took."""
        steps = self.chain.num_steps
        still = torch.zeros(1, steps, *self.chunk_shape, device=self.device)
        noise = ChunkNoise(still[:, 0], still, torch.ones(1, steps, device=self.device))
        sampler = Speculative("refine" if self.gain is None else "gain", 16)

        inputs = Inputs(noise.uniforms, noise, Prior(self.gain))
        return max(self._run(self.chain, sampler, self._idle_model, None, inputs).calls)

    def _condition(self, history: NDArray[np.float32]) -> Tensor:
        raw = torch.from_numpy(history).to(self.device)
        return self._observation.normalize(features(self.spec.observations, raw)).flatten(1)
