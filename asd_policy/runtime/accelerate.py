"""Makes live policies of other libraries sample in a handful of calls: ``accelerate(policy)``.

Their own ``select_action`` or ``predict_action`` goes on as before, up to the loop over denoising
steps. There they find, instead of their noise scheduler, one that has a single step: the step is
the whole chain, sampled by ASD. What their loop hands to the network in it is the condition.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from asd_policy.errors import PlanningError, SamplerError
from asd_policy.policies.schedulers import chain_and_parametrization
from asd_policy.sampling import (
    ChunkNoise,
    CleanPrediction,
    Gain,
    GaussianChain,
    Prior,
    Sampler,
    SampleResult,
    Speculative,
    parse_sampler,
    sample,
    shifted,
)
from asd_policy.sampling.chain import Posterior


def accelerate(
    policy: Any, sampler: str | Sampler = "asd", gain: Gain | None = None
) -> Accelerated:
    """Make a live diffusion policy sample by ASD, in the same distribution.

    Works on LeRobot's ``DiffusionPolicy``, on the policies of diffusion_policy (U-Net and
    transformer, low-dimensional, hybrid and image) and on robomimic's ``DiffusionPolicyUNet`` or a
    ``RolloutPolicy`` around it. A DDIM scheduler is replaced by the whole DDPM that it abbreviates.
    Seeds given to torch, or a generator given to the policy, still decide the actions, from the
    policy's ``reset`` on: where it has one, ``asd`` drafts from the chunk that was sampled before.

    Example:
        >>> with asd_policy.accelerate(policy) as accelerated:
        ...     action = policy.select_action(batch)
        ...     print(accelerated.last.calls)

    Args:
        policy: The live object; it is changed in place until ``restore``.
        sampler: A sampler or its name.
        gain: What was learned about drafting for this network, if anything (the ``planner.gain``
            of its converted and calibrated checkpoint).

    Returns:
        What undoes it, by ``restore()`` or as a context manager.

    Raises:
        TypeError: If this is no such policy, or one whose samples are conditioned by inpainting; or
            the gain is none.
        SamplerError: If the sampler needs what a live policy has not: a draft network, or measured
            costs (``asd:auto``).
    """
    if gain is not None and not isinstance(gain, Gain):
        raise TypeError(
            f"gain: expected a Gain, as load_policy(FOLDER).planner.gain, got {type(gain).__name__}"
        )
    chosen = parse_sampler(sampler)
    if isinstance(chosen, Speculative) and (chosen.window == "auto" or chosen.uses_draft_model):
        raise SamplerError(
            f"sampler: {chosen} needs measured costs or a draft network, which a live policy has "
            "not; take asd or a window as a number, or convert the checkpoint and load_policy it"
        )
    return Accelerated(_find(policy), chosen, gain)


@dataclass(frozen=True)
class _Parts:
    """Where a policy keeps its scheduler, the network that it samples with, and its episodes.

    Attributes:
        owner: Has ``noise_scheduler``.
        network: What the loop asks.
        episodes: Has ``reset``, if it can be told where an episode begins.
        executed: Actions of a chunk that are executed before the next is sampled.
    """

    owner: Any
    network: nn.Module
    episodes: Any
    executed: int


class Accelerated(AbstractContextManager["Accelerated"]):
    """A policy that samples by ASD until ``restore`` or the end of the context.

    Attributes:
        last: The newest sampling's calls and evaluations; None before the first.
        seconds: How long it took.
    """

    def __init__(self, parts: _Parts, sampler: Sampler, gain: Gain | None) -> None:
        self.last: SampleResult | None = None
        self.seconds = 0.0
        self._parts = parts
        self._scheduler = parts.owner.noise_scheduler
        if isinstance(self._scheduler, _OneStep):
            raise TypeError("the policy is accelerated already: restore it first")
        self._stand_in = _OneStep(self._scheduler, parts, sampler, gain, self)
        parts.owner.noise_scheduler = self._stand_in
        self._reset = getattr(parts.episodes, "reset", None)
        if callable(self._reset):
            parts.episodes.reset = self._begin

    def restore(self) -> None:
        """Give the policy its own scheduler back; harmless when repeated."""
        self._stand_in.forget()
        self._parts.owner.noise_scheduler = self._scheduler
        vars(self._parts.episodes).pop("reset", None)

    def _begin(self, *arguments: Any, **options: Any) -> Any:
        """In place of the policy's ``reset``: no chunk was before."""
        self._stand_in.begin()
        assert self._reset is not None
        return self._reset(*arguments, **options)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the policy."""
        self.restore()


@dataclass(frozen=True)
class _Step:
    """What the loops of these libraries read of a scheduler's step."""

    prev_sample: Tensor


class _OneStep:
    """A scheduler whose only step is the whole chain.

    The network's ``forward`` is replaced for the one call that the loop makes in that step: it
    keeps what it is given and puts out zeros, so that the loop's own call costs nothing.
    """

    def __init__(
        self,
        scheduler: Any,
        parts: _Parts,
        sampler: Sampler,
        gain: Gain | None,
        report: Accelerated,
    ) -> None:
        self._scheduler, self._network, self._executed = scheduler, parts.network, parts.executed
        self._remembers = callable(getattr(parts.episodes, "reset", None))
        self._previous: Tensor | None = None
        self._sampler, self._gain, self._report = sampler, gain, report
        self._asked: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._steps: int | None = None
        self._tables: dict[Any, tuple[GaussianChain, CleanPrediction, Prior]] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # as copies look for, before there is a scheduler to ask
            raise AttributeError(name)
        return getattr(self._scheduler, name)

    def set_timesteps(self, num_inference_steps: int, *arguments: Any, **options: Any) -> None:
        """Begin a sampling: the next call of the network only says what the condition is."""
        self._steps = num_inference_steps
        self.forget()

        def forward(*given: Any, **named: Any) -> Tensor:
            self.forget()
            self._asked = given, named
            return torch.zeros_like(named["sample"] if "sample" in named else given[0])

        self._network.forward = forward

    def begin(self) -> None:
        """Begin an episode."""
        self._previous = None

    def forget(self) -> None:
        """Leave the network as it was, also where a sampling broke off."""
        self._asked = None
        self._network.__dict__.pop("forward", None)

    @property
    def timesteps(self) -> Tensor:
        """The one step."""
        return torch.tensor([self._scheduler.config["num_train_timesteps"] - 1])

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> _Step:
        """The whole chain from the initial noise ``sample`` ``(N, Tp, D)``."""
        if self._asked is None:
            raise PlanningError(
                "the policy did not ask its network before its scheduler: this is not a sampling "
                "loop that can be accelerated"
            )
        (given, named), self._asked = self._asked, None
        start = _now(sample.device)
        chain, clean, prior = self._chain(sample.device)
        self._check_gain(sample, chain)
        prior = replace(prior, previous=self._shifted(sample))
        times = chain.network_time.to(sample.device)

        def denoise(x: Tensor, step: Tensor, chain_index: Tensor) -> Tensor:
            asked = x.to(sample.dtype)
            inputs, conditions = _rows(given, named, asked, times[step], chain_index)
            output = self._network(*inputs, **conditions)
            return clean(x, output.to(x.dtype), step)

        noise = _noise(sample, chain.num_steps, generator)
        with torch.no_grad():
            result = _sample(denoise, chain, noise, self._sampler, prior)
        if self._remembers:
            self._previous = result.x.clone()  # what is handed out may be changed
        self._report.last = result
        self._report.seconds = _now(sample.device) - start
        return _Step(result.x.to(sample.dtype))

    def _shifted(self, sample: Tensor) -> list[Tensor] | None:
        """For each row the chunk before it, as it is seen now."""
        if self._previous is None or self._previous.shape != sample.shape:
            return None
        return [shifted(chunk, self._executed) for chunk in self._previous]

    def _check_gain(self, sample: Tensor, chain: GaussianChain) -> None:
        if self._gain is None:
            return
        found, expected = (
            (self._gain.num_steps, self._gain.size),
            (chain.num_steps, sample[0].numel()),
        )
        if found != expected:
            raise PlanningError(
                f"gain: expected one of {expected[0]} steps and chunks of {expected[1]} numbers, "
                f"got {found[0]} and {found[1]}: it is of another policy, or of another chain"
            )

    def _chain(self, device: torch.device) -> tuple[GaussianChain, CleanPrediction, Prior]:
        key = self._steps, device
        if key not in self._tables:
            kind = type(self._scheduler).__name__
            chain_options, parametrization = chain_and_parametrization(
                kind, dict(self._scheduler.config), self._steps, _posterior(), kind
            )
            chain = GaussianChain.ddpm(**{k: v for k, v in chain_options.items() if k != "name"})
            prior = Prior(None if self._gain is None else self._gain.to(device))
            self._tables[key] = chain, CleanPrediction(chain, parametrization, device), prior
        return self._tables[key]


_sample = sample


def _rows(
    given: tuple[Any, ...],
    named: Mapping[str, Any],
    x: Tensor,
    times: Tensor,
    chain_index: Tensor,
) -> tuple[list[Any], dict[str, Any]]:
    """The loop's arguments with other samples and times, and the conditions of these rows."""

    def of_rows(value: Any) -> Any:
        return value[chain_index] if isinstance(value, Tensor) and value.ndim else value

    named = {name: of_rows(value) for name, value in named.items()}
    inputs = list(given)
    if "sample" in named:
        named["sample"] = x
    else:
        inputs[0] = x
    if "timestep" in named:
        named["timestep"] = times
    else:
        inputs[1 if "sample" not in named else 0] = times
    first = sum(name not in named for name in ("sample", "timestep"))
    inputs[first:] = [of_rows(value) for value in inputs[first:]]
    return inputs, named


def _now(device: torch.device) -> float:
    """The time at which a device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _noise(initial: Tensor, num_steps: int, generator: torch.Generator | None) -> ChunkNoise:
    """Fresh noise for chains that begin at ``initial`` ``(N, *D)``."""

    def block(first: Tensor) -> ChunkNoise:
        n = len(first)
        shape = (n, num_steps, *first.shape[1:])
        steps = normal(shape)
        uniforms = 1 - torch.rand(n, num_steps, generator=generator, device=first.device)
        return ChunkNoise(first, steps, uniforms, lambda _: block(normal(first.shape)))

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=generator, device=initial.device)

    return block(initial.float())


def _posterior() -> Posterior:
    """How the installed diffusers rounds."""
    try:
        major, minor = version("diffusers").split(".")[:2]
        return "table" if (int(major), int(minor)) < (0, 12) else "ratio"
    except (PackageNotFoundError, ValueError):
        return "ratio"


def _find(policy: Any) -> _Parts:
    """The parts of a policy of any of the libraries."""
    diffusion = getattr(policy, "diffusion", None)
    if diffusion is not None and hasattr(diffusion, "unet"):  # LeRobot
        executed = getattr(getattr(policy, "config", None), "n_action_steps", 0)
        return _Parts(diffusion, diffusion.unet, policy, executed)
    algorithm = getattr(policy, "policy", policy)  # robomimic's RolloutPolicy
    nets = getattr(algorithm, "nets", None)
    if nets is not None and hasattr(algorithm, "_get_action_trajectory"):
        average = getattr(algorithm, "ema", None)
        nets = nets if average is None else average.averaged_model
        options = getattr(algorithm, "algo_config", None)
        executed = getattr(getattr(options, "horizon", None), "action_horizon", 0)
        return _Parts(algorithm, nets["policy"]["noise_pred_net"], algorithm, executed)
    if hasattr(policy, "conditional_sample") and isinstance(
        getattr(policy, "model", None), nn.Module
    ):
        conditioned = getattr(policy, "obs_as_global_cond", getattr(policy, "obs_as_cond", True))
        if not conditioned or getattr(policy, "obs_as_local_cond", False):
            raise TypeError(
                f"{type(policy).__name__} inpaints its observations or has them as a local "
                "condition; only global conditions can be accelerated"
            )
        return _Parts(policy, policy.model, policy, getattr(policy, "n_action_steps", 0))
    raise TypeError(
        f"expected LeRobot's DiffusionPolicy, a diffusion_policy policy, or robomimic's diffusion "
        f"policy; got {type(policy).__name__}"
    )
