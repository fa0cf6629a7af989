"""Latency as a robot feels it: ``python -m eval.latency checkpoint=FOLDER``.

Every sampler plans in the same situations of the policy's own episodes, in turns, in one process of
one thread; the report says what control rates that allows, and how many robots one machine serves.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

import asd_policy
import envs
from asd_policy import AsdPolicyError
from asd_policy.policies import Policy
from envs.errors import EnvError
from eval.errors import EvaluationError, RequestError
from eval.latency_acts import time_acts
from eval.latency_measure import Measured, measure
from eval.latency_report import Report
from eval.processes import run_apart
from eval.provenance import identify
from eval.recorded import Source, source
from eval.settings import device, is_whole, results_folder, samplers, whole
from eval.situations import Situations, record
from eval.trial import try_samplers

_FEWEST = 2
"""Situations without which there is neither spread nor interval."""


@dataclass(frozen=True)
class Request:
    """What to measure, read from `configs/eval/latency.yaml` and what overrides it, and checked."""

    checkpoint: Path
    samplers: tuple[str, ...]
    chunks: int
    recorded: str | None
    control_hz: float | None
    situations: Path | None
    first_seed: int
    act_steps: int
    environments: tuple[int, ...]
    throughput_samplers: tuple[str, ...]
    repetitions: int
    measured: Path | None
    device: str
    output: Path

    @classmethod
    def from_config(cls, config: DictConfig) -> Request:
        """Read the configuration.

        Raises:
            RequestError: If a value cannot be measured.
            asd_policy.SamplerError: If there is no such sampler.
        """
        if OmegaConf.is_missing(config, "checkpoint"):
            raise RequestError("checkpoint: expected a checkpoint's folder, got nothing")
        checkpoint = Path(str(config.checkpoint))
        return cls(
            checkpoint=checkpoint,
            samplers=_labels(config, "sampler"),
            chunks=whole(config, "chunks", _FEWEST),
            recorded=None if config.recorded is None else str(config.recorded),
            control_hz=_control_hz(config),
            situations=None if config.situations is None else Path(str(config.situations)),
            first_seed=whole(config, "first_seed", 0),
            act_steps=_act_steps(config),
            environments=_environments(config.environments),
            throughput_samplers=_labels(config, "throughput_samplers"),
            repetitions=whole(config, "repetitions", 1),
            measured=None if config.measured is None else Path(str(config.measured)),
            device=device(config),
            output=Path(config.output or results_folder("latency", checkpoint)),
        )


def run(config: DictConfig, command: str) -> Report:
    """Measure as the configuration says, and write the report.

    Raises:
        EvaluationError: If the configuration asks for what cannot be measured, or names a file that
            cannot be read.
        asd_policy.AsdPolicyError: If the checkpoint cannot be read or a sampler cannot run.
    """
    torch.set_num_threads(1)
    request = Request.from_config(config)
    policy = asd_policy.load_policy(request.checkpoint, device=request.device)
    identity = identify(request.checkpoint)
    task, title, control_hz = _task(request, policy)
    acts: dict[str, list[float]] = {}
    if request.measured is not None:
        measured = Measured.load(request.measured)
        if measured.task != task:
            raise RequestError(
                f"measured: {request.measured} is of a policy for {measured.task!r}, "
                f"{request.checkpoint} is one for {task!r}"
            )
        known = measured.provenance.get("checkpoint", "none")
        if known != identity:
            raise RequestError(
                f"measured: expected times of {request.checkpoint} ({identity[:12]}) in "
                f"{request.measured}, got those of another checkpoint ({known[:12]}): name that, "
                "or measure again"
            )
    else:
        several = request.throughput_samplers if request.environments else ()
        try_samplers(policy.planner, dict.fromkeys((*request.samplers, *several)))
        episodes = None
        if request.situations is None or request.act_steps:
            if request.situations is not None and not (
                request.recorded or policy.spec.task in envs.names()
            ):
                raise RequestError(
                    f"act_steps: task {policy.spec.task!r} is not simulated here, so `act` cannot "
                    "be timed: give act_steps=0, or recorded=FILE.hdf5"
                )
            episodes = source(policy.spec, request.recorded, request.first_seed)
        situations = _situations(request, policy, episodes)
        # Each in a fresh process: nothing that ran before is in its memory or in its way.
        measured = run_apart(
            measure,
            request.checkpoint,
            situations,
            request.samplers,
            request.device,
            request.throughput_samplers,
            request.environments,
            request.repetitions,
        )
        if episodes is not None and request.act_steps:
            acts = run_apart(
                time_acts,
                request.checkpoint,
                request.samplers,
                request.device,
                episodes.make_env,
                request.first_seed,
                episodes.max_steps,
                request.act_steps,
            )
    report = Report(command, str(request.checkpoint), title, control_hz, measured, acts)
    report.write(request.output)
    return report


def _task(request: Request, policy: Policy) -> tuple[str, str, float]:
    """The task's name, its name for people, and the robot's rate."""
    name = policy.spec.task
    known = envs.spec(name) if name in envs.names() else None
    hz = request.control_hz or (known and known.control_hz)
    if not hz:
        raise RequestError(
            f"control_hz: task {name!r} is not simulated here; expected how many control steps a "
            "second the robot takes, got none: give control_hz=…"
        )
    return name, known.title if known else name, hz


def _situations(request: Request, policy: Policy, episodes: Source | None) -> Situations:
    """Read or record where to plan; what was recorded is kept with the results."""
    if request.situations is not None:
        situations = Situations.load(request.situations)
        spec = policy.spec
        history = (spec.obs_horizon, spec.observation_dim)
        places = spec.obs_horizon - 1 if spec.context == "growing" else 0
        if (
            situations.history.shape[1:] != history
            or situations.previous.shape[1:] != policy.planner.chunk_shape
            or situations.begun.shape[1] != places
        ):
            raise RequestError(
                f"situations: {request.situations} is of another policy: expected histories "
                f"{history}, chunks {policy.planner.chunk_shape} and {places} actions before, got "
                f"{situations.history.shape[1:]}, {situations.previous.shape[1:]} and "
                f"{situations.begun.shape[1]}"
            )
        if len(situations) < _FEWEST:
            raise RequestError(
                f"situations: expected {_FEWEST} or more in {request.situations}, got "
                f"{len(situations)}"
            )
        return situations
    assert episodes is not None
    episodes.check_chunks(request.chunks, policy.spec)
    situations = record(
        policy, episodes.make_env, request.first_seed, request.chunks, episodes.max_steps
    )
    request.output.mkdir(parents=True, exist_ok=True)
    situations.save(request.output / "situations.safetensors")
    return situations


def _labels(config: DictConfig, key: str) -> tuple[str, ...]:
    return tuple(map(str, samplers(config, key)))


def _environments(value: Any) -> tuple[int, ...]:
    counts = list(value) if isinstance(value, ListConfig) else [value]
    if any(not is_whole(count, 1) for count in counts) or len(set(counts)) < len(counts):
        raise RequestError(
            f"environments: expected different whole numbers of at least 1, or [], got {value!r}"
        )
    return tuple(sorted(counts))


def _control_hz(config: DictConfig) -> float | None:
    value = config.control_hz
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value < float("inf")):
        raise RequestError(f"control_hz: expected a number above 0, or null, got {value!r}")
    return value


def _act_steps(config: DictConfig) -> int:
    steps = whole(config, "act_steps", 0)
    if steps == 1:
        raise RequestError("act_steps: expected 0 for none, or at least 2, got 1")
    return steps


@hydra.main(version_base="1.3", config_path="../configs/eval", config_name="latency")
def main(config: DictConfig) -> None:
    """Run from the command line."""
    command = shlex.join(["python", "-m", "eval.latency", *HydraConfig.get().overrides.task])
    try:
        report = run(config, command)
    except (EvaluationError, AsdPolicyError, EnvError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was reported", file=sys.stderr)
        sys.exit(130)
    print(report.text())


if __name__ == "__main__":
    main()
