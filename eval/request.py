"""What the user asks to be evaluated, read from the configuration and checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from omegaconf import DictConfig

import asd_policy
import envs
from eval.environments import env_options
from eval.episodes import Episode, Experiment
from eval.errors import RequestError
from eval.provenance import identify
from eval.settings import device, names, results_folder, samplers, switch, whole


@dataclass(frozen=True)
class Request:
    """An evaluation.

    Attributes:
        experiments: One for each task.
        samplers: Labels of the samplers; the first is the baseline of the comparisons.
        seeds: Seeds of the initial states.
        repeats: Episodes of each sampler for each seed, with different noise.
        workers: Processes.
        places: For each task, episodes that a worker runs side by side.
        videos: Episodes filmed for each task.
        planning_chunks: Chunks for which each sampler is timed; 0 for no timing.
        output: Folder of the results.
        report_only: Whether to run, time and film nothing, and to report what is stored.
    """

    experiments: tuple[Experiment, ...]
    samplers: tuple[str, ...]
    seeds: range
    repeats: int
    workers: int
    places: dict[str, int]
    videos: int
    planning_chunks: int
    output: Path
    report_only: bool = False

    @property
    def store(self) -> Path:
        """The file of results."""
        return self.output / "episodes.sqlite"

    @property
    def episodes(self) -> list[Episode]:
        """The episodes of each task, sampler by sampler."""
        return [Episode(*key) for key in product(self.samplers, self.seeds, range(self.repeats))]

    @classmethod
    def from_config(cls, config: DictConfig) -> Request:
        """Read the configuration (see `configs/eval/settings.yaml`).

        Raises:
            RequestError: If a value cannot be evaluated, or no policy has the name.
            envs.errors.UnknownTaskError: If there is no such task.
            asd_policy.AsdPolicyError: If there is no such checkpoint or sampler.
        """
        tasks = names(config, "task")
        if config.checkpoint is not None and len(tasks) > 1:
            raise RequestError(
                f"checkpoint: one checkpoint cannot serve the tasks {tasks}; evaluate them one by "
                "one, or leave checkpoint=null for checkpoints/TASK_POLICY"
            )
        first_seed = whole(config, "first_seed", least=0)
        seeds = whole(config, "seeds", least=1)
        experiments = tuple(_experiment(config, task) for task in tasks)
        checkpoints = [experiment.checkpoint for experiment in experiments]
        return cls(
            experiments=experiments,
            samplers=tuple(map(str, samplers(config, "sampler"))),
            seeds=range(first_seed, first_seed + seeds),
            repeats=whole(config, "repeats", least=1),
            workers=whole(config, "workers", least=1, default=_cpus()),
            places={
                # robosuite's environments take 130-260 MB each.
                task: whole(
                    config, "episodes_per_worker", least=1, default=16 if task == "pusht" else 4
                )
                for task in tasks
            },
            videos=min(whole(config, "videos", least=0), seeds),
            planning_chunks=whole(config, "planning_chunks", least=0),
            output=Path(config.output or results_folder("success", *checkpoints)),
            report_only=switch(config, "report_only"),
        )


def _experiment(config: DictConfig, task: str) -> Experiment:
    limit = envs.spec(task).max_episode_steps
    max_steps = whole(config, "max_steps", least=1, default=limit)
    if max_steps > limit:
        raise RequestError(f"max_steps: {task} ends after {limit} steps, got {max_steps}")
    path = Path(config.checkpoint) if config.checkpoint else _shipped(task, str(config.policy))
    spec = asd_policy.load_policy(path).spec
    if spec.task != task:
        raise RequestError(f"checkpoint: {path} is a policy for {spec.task!r}, not for {task!r}")
    return Experiment(
        task=task,
        checkpoint=path,
        env_options=env_options(spec),
        fingerprints={str(each): identify(path, each) for each in samplers(config, "sampler")},
        num_steps=spec.build_chain().num_steps,
        max_steps=max_steps,
        device=device(config),
    )


def _shipped(task: str, policy: str) -> Path:
    """The folder of a task's policy by the name of its family."""
    folder = Path("checkpoints")
    found = sorted(path.name for path in folder.glob(f"{task}_*") if path.is_dir())
    if f"{task}_{policy}" not in found:
        names = ", ".join(name.removeprefix(f"{task}_") for name in found)
        raise RequestError(
            f"policy: expected one of those for {task} in {folder.resolve()} "
            f"({names or 'there are none; run this in the clone'}), got {policy!r}; "
            "checkpoint=FOLDER evaluates any other"
        )
    return folder / f"{task}_{policy}"


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
