"""Measure how long planning takes: every sampler side by side, in one process of one thread.

Needs no simulator and no hydra, so that it runs where the accelerator is, too::

    situations = Situations.load(Path("situations.safetensors"))
    measure("checkpoints/pusht_chi_unet", situations, ["ddpm", "asd"]).save(Path("measured.json"))
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import asd_policy
from asd_policy.policies import Planner
from asd_policy.sampling import Sampler, Speculative, parse_sampler
from eval.errors import EvaluationError
from eval.files import write_text
from eval.latency_inspect import device_memory, process_memory, shares_outside
from eval.latency_problem import Problem, turns
from eval.provenance import describe, identify
from eval.situations import Situations

_WARM_UP = 3
"""Situations that each sampler plans before any is timed; the first has no previous chunk."""
_INSPECTED = 10
"""Situations planned once more, to see where the time and the memory go."""
_FEWEST_CHUNKS = 96
"""Planned for any number of environments: chunks are too unlike each other for fewer to compare."""


@dataclass(frozen=True)
class PlanTime:
    """One chunk planned for one robot: by which sampler, in which situation, and its cost."""

    sampler: str
    situation: int
    seconds: float
    calls: int
    evaluations: int


@dataclass(frozen=True)
class BatchTime:
    """Chunks for several environments, planned together."""

    sampler: str
    environments: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """All that was measured; ``eval.latency_summary`` makes figures of it.

    Attributes:
        task: The policy's task.
        num_steps: Steps of its chain.
        action_horizon: Actions that are executed of a chunk.
        samplers: Those timed for one robot, in the order asked for.
        plans: Their times, one for each situation and sampler.
        outside: For each sampler the part of its time spent outside of the network; a sampler
            with a draft network has none.
        memory: Largest memory in bytes: ``process`` while planning for one robot with all samplers,
            ``process_before`` the network was loaded; on an accelerator by sampler, too.
        call_rows: Batch sizes of the table that ``auto`` windows follow from; may be empty.
        call_seconds: What calls of these sizes cost by it.
        batches: Times of planning for several environments together.
        provenance: What it was measured with.
    """

    task: str
    num_steps: int
    action_horizon: int
    samplers: list[str]
    plans: list[PlanTime]
    outside: dict[str, float]
    memory: dict[str, int]
    call_rows: list[int]
    call_seconds: list[float]
    batches: list[BatchTime]
    provenance: dict[str, str]

    def save(self, path: Path) -> None:
        """Write it as JSON, to be reported elsewhere."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Read what ``save`` wrote.

        Raises:
            EvaluationError: If the file is not that.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["plans"] = [PlanTime(**entry) for entry in content["plans"]]
            content["batches"] = [BatchTime(**entry) for entry in content["batches"]]
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path}: not a file of measured latencies: {error}") from error


def measure(
    checkpoint: str | Path,
    situations: Situations,
    samplers: Sequence[str],
    device: str = "auto",
    throughput_samplers: Sequence[str] = (),
    environments: Sequence[int] = (),
    repetitions: int = 3,
) -> Measured:
    """Measure a policy's samplers. Call this where nothing else is running.

    Args:
        checkpoint: The policy's folder.
        situations: Where to plan, of that policy; two or more.
        samplers: Names of those to time for one robot.
        device: Where to run.
        throughput_samplers: Names of those to time for several environments.
        environments: How many environments plan together; several numbers.
        repetitions: How often for each number, at least; more often for few environments.

    Raises:
        RequestError: If the checkpoint is of another project's format.
        asd_policy.AsdPolicyError: If the checkpoint cannot be read or a sampler cannot run.
    """
    torch.set_num_threads(1)
    memory = {"process_before": process_memory()}
    planner = asd_policy.load_policy(checkpoint, device=device).planner
    provenance = {**made_with(planner.device), "checkpoint": identify(checkpoint)}
    single = [parse_sampler(name) for name in samplers]
    several = [parse_sampler(name) for name in throughput_samplers] if environments else []
    auto = any(isinstance(s, Speculative) and s.window == "auto" for s in [*single, *several])
    costs = planner.costs() if auto else None
    plans = time_plans(planner, situations, single)
    rows = range(min(_INSPECTED, len(situations)))
    problems = [Problem.of(planner, situations, [row]) for row in rows]
    memory |= {"process": process_memory(), **device_memory(planner, problems[:2], single)}
    return Measured(
        task=planner.spec.task,
        num_steps=planner.chain.num_steps,
        action_horizon=planner.spec.action_horizon,
        samplers=[str(sampler) for sampler in single],
        plans=plans,
        outside=shares_outside(planner, problems, single),
        memory=memory,
        call_rows=list(costs.rows) if costs else [],
        call_seconds=list(costs.seconds) if costs else [],
        batches=time_batches(planner, situations, several, environments, repetitions),
        provenance=provenance,
    )


def time_plans(
    planner: Planner, situations: Situations, samplers: Sequence[Sampler]
) -> list[PlanTime]:
    """Plan every situation with every sampler, with the same noise, in turns."""
    times: list[PlanTime] = []
    with tqdm(total=_WARM_UP + len(situations), desc="planning", unit="chunk") as progress:
        for place in range(-_WARM_UP, len(situations)):
            row = place if place >= 0 else (place + _WARM_UP) % len(situations)
            problem = Problem.of(planner, situations, [row])
            for sampler in turns(samplers, place):
                seconds, result = problem.timed(planner, sampler)
                if place >= 0:
                    cost = result.calls[0], result.evaluations[0]
                    times.append(PlanTime(str(sampler), row, seconds, *cost))
            progress.update()
    return times


def time_batches(
    planner: Planner,
    situations: Situations,
    samplers: Sequence[Sampler],
    environments: Sequence[int],
    repetitions: int,
) -> list[BatchTime]:
    """Plan for several environments together, in turns, after one planning each to warm up."""
    times: list[BatchTime] = []
    often = {count: max(repetitions, math.ceil(_FEWEST_CHUNKS / count)) for count in environments}
    total = sum(1 + n for n in often.values()) * len(samplers)
    with tqdm(total=total, desc="throughput", unit="batch") as progress:
        for count in environments:
            for repetition in range(-1, often[count]):
                first = max(repetition, 0) * count
                problem = Problem.of(planner, situations, range(first, first + count))
                for sampler in turns(samplers, repetition):
                    seconds, _ = problem.timed(planner, sampler)
                    if repetition >= 0:
                        times.append(BatchTime(str(sampler), count, seconds))
                    progress.update()
    return times


def made_with(device: torch.device) -> dict[str, str]:
    """Versions, machine and settings that times depend on."""
    settings = {
        "threads": str(torch.get_num_threads()),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        settings |= {
            "cuda": str(torch.version.cuda),
            "cudnn_allow_tf32": str(torch.backends.cudnn.allow_tf32),
        }
    return {**describe(str(device)), **settings}
