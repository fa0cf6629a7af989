"""Record scripted demonstrations: `python -m checkpoints.collect task=lift output=lift.hdf5`.

The file is in robomimic's format. Episodes that fail are counted, not kept. A run can be stopped at
any time and goes on where it was: finished episodes wait in `<output>.partial`, which takes its
final name when it is complete. An episode depends on its seed alone, so neither stopping nor the
number of workers changes the file's contents.
"""

import itertools
import json
import logging
import os
import platform
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import h5py
import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

import asd_policy
import envs
from asd_policy.formats.native import weights_digest
from asd_policy.policies import Policy
from checkpoints.stopping import stop_like_ctrl_c
from envs import demonstrators
from envs.demonstrators.recording import (
    Disturbed,
    Episode,
    FailedEpisode,
    Opening,
    record_episodes,
)
from envs.robomimic import RobomimicEnv
from envs.specs import ActionMode
from envs.task_env import Observation

_OPENING_STREAM = 2
"""Keeps the length of a policy's opening apart from the simulator's random numbers."""


_log = logging.getLogger(__name__)


class CollectError(Exception):
    """Settings that cannot be met, or a file in the way."""


class DemoFile:
    """A robomimic file in the making.

    Args:
        output: Where the finished file goes.
        settings: What the episodes depend on; a partial file made with others is not continued.

    Raises:
        CollectError: If the output exists, or a partial file cannot be continued.
    """

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        if output.exists():
            raise CollectError(f"{output} exists already; name another output or remove it")
        output.parent.mkdir(parents=True, exist_ok=True)
        self.output = output
        self.partial = output.with_name(output.name + ".partial")
        try:
            self._file = h5py.File(self.partial, "a")
        except OSError as error:
            raise CollectError(
                f"{self.partial} cannot be continued ({error}); remove it to start afresh"
            ) from error
        self._data = self._file.require_group("data")
        self._file.pop("incoming", None)
        before = json.loads(self._data.attrs.setdefault("collect", json.dumps(settings)))
        if before != settings:
            self._file.close()
            raise CollectError(
                f"{self.partial} was made with {before}, not {settings}; "
                "use those settings, or remove it to start afresh"
            )

    def __enter__(self) -> "DemoFile":
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; what is in it stays in the partial file unless `finish` was called."""
        self._file.close()

    @property
    def episodes(self) -> int:
        """Number of demonstrations in the file."""
        return len(self._data)

    @property
    def failed_seeds(self) -> list[int]:
        """Seeds whose episodes failed."""
        return [int(seed) for seed in self._data.attrs.get("failed_seeds", [])]

    def add(self, episode: Episode | FailedEpisode) -> None:
        """Write one episode; a failed one only leaves its seed."""
        if isinstance(episode, FailedEpisode) or not episode.success:
            self._data.attrs["failed_seeds"] = [*self.failed_seeds, episode.seed]
        else:
            # Moved to its name only when complete, so that a crash leaves no half of an episode.
            group = self._file.create_group("incoming")
            for key in ("actions", "actions_abs", "rewards", "dones", "states"):
                group[key] = getattr(episode, key)
            for key, values in episode.observations.items():
                group[f"obs/{key}"] = values
            group.attrs["num_samples"] = len(episode.actions)
            group.attrs["model_file"] = episode.model_xml
            group.attrs["seed"] = episode.seed
            group.attrs["demonstrator"] = episode.style
            self._data.attrs["env_args"] = episode.env_meta
            self._file.move("incoming", f"data/demo_{self.episodes}")
        self._file.flush()

    def finish(self, valid_fraction: float, seed: int) -> None:
        """Write the totals and the split, and give the file its final name."""
        names = np.array([f"demo_{i}" for i in range(self.episodes)], dtype="S")
        self._data.attrs["failed_seeds"] = self.failed_seeds
        self._data.attrs["total"] = sum(d.attrs["num_samples"] for d in self._data.values())
        order = np.random.default_rng(seed).permutation(len(names))
        held_out = np.zeros(len(names), dtype=bool)
        held_out[order[: round(valid_fraction * len(names))]] = True
        self._file.pop("mask", None)
        self._file["mask/train"], self._file["mask/valid"] = names[~held_out], names[held_out]
        self._file.close()
        os.replace(self.partial, self.output)


def collect(config: DictConfig) -> Path:
    """Record demonstrations as `configs/collect.yaml` describes.

    Returns:
        The finished file.

    Raises:
        CollectError: If a setting is out of range, a file is in the way, or most episodes fail.
        UnknownTaskError: If there is no such task.
    """
    _check(config)
    settings = {
        "task": config.task.name,
        "seed": config.seed,
        "tail": config.tail,
        "opening": config.opening,
        "opening_weights": _opening_weights(config.opening),
        "opening_steps": config.opening_steps,
        "versions": _versions(),
    }
    with DemoFile(Path(config.output), settings) as file:
        failed = len(file.failed_seeds)
        seeds = itertools.count(config.seed + file.episodes + failed)
        recording = record_episodes(
            config.task.name, seeds, config.tail, config.workers, _opening(config)
        )
        bar = tqdm(total=config.episodes, initial=file.episodes, unit="episode")
        with closing(recording) as episodes, bar:
            while file.episodes < config.episodes:
                episode = next(episodes)
                file.add(episode)
                if isinstance(episode, FailedEpisode):
                    _log.warning("seed %d failed: %s", episode.seed, episode.error)
                bar.update(file.episodes - bar.n)
                failed = len(file.failed_seeds)
                bar.set_postfix(failed=failed)
                if failed > 3 * config.episodes + 10:
                    raise CollectError(f"{failed} episodes failed: is the simulation sound?")
        file.finish(config.valid_fraction, config.seed)
    return Path(config.output)


@dataclass(frozen=True)
class PolicyOpening:
    """A policy's beginning, from which the demonstrator goes on (DAgger: Ross et al. 2011).

    Attributes:
        checkpoint: The policy's folder.
        steps: Most steps that it takes.
    """

    checkpoint: str
    steps: int

    def __call__(self, env: RobomimicEnv, observation: Observation, seed: int) -> Observation:
        """Play some steps; the last observation."""
        policy = _policy(self.checkpoint)
        rng = np.random.default_rng([seed, _OPENING_STREAM])
        policy.reset(seed=seed)
        env.action_mode = cast(ActionMode, policy.spec.action_mode)
        for _ in range(rng.integers(self.steps + 1)):
            observation, *_ = env.step(policy.act(observation))
        env.action_mode = "delta"
        return observation


@cache
def _policy(checkpoint: str) -> Policy:
    torch.set_num_threads(1)
    return asd_policy.load_policy(checkpoint, device="cpu", sampler="refine")


def _opening_weights(opening: str | None) -> str | None:
    """Which weights a policy's opening is of: in another round of DAgger its folder has others."""
    return None if opening in (None, "noise") else weights_digest(opening)


def _opening(config: DictConfig) -> Opening | None:
    if config.opening is None:
        return None
    if config.opening == "noise":
        return Disturbed(config.opening_steps)
    return PolicyOpening(config.opening, config.opening_steps)


def _check(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise CollectError(f"settings without a value: {missing}; give {missing[0]}=…")
    spec = envs.spec(config.task.name)
    task = spec.name
    if task not in demonstrators.names():
        raise CollectError(f"task={task}: there are demonstrators for {demonstrators.names()} only")
    for key, least in (
        ("episodes", 1),
        ("workers", 1),
        ("tail", 0),
        ("seed", 0),
        ("opening_steps", 1),
    ):
        if config[key] < least:
            raise CollectError(f"{key}={config[key]}: expected at least {least}")
    if config.opening_steps >= spec.max_episode_steps:
        raise CollectError(
            f"opening_steps={config.opening_steps}: expected less than the "
            f"{spec.max_episode_steps} steps of an episode of {task}"
        )
    if config.opening not in (None, "noise"):
        policy = asd_policy.load_policy(config.opening, device="cpu").spec
        if policy.task != task:
            raise CollectError(f"opening={config.opening}: a policy for {policy.task}, not {task}")
    if not 0 <= config.valid_fraction < 1:
        raise CollectError(f"valid_fraction={config.valid_fraction}: expected one in [0, 1)")


def _versions() -> dict[str, str]:
    packages = ("robosuite", "mujoco", "numpy", "gymnasium")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@hydra.main(version_base="1.3", config_path="../configs", config_name="collect")
def main(config: DictConfig) -> None:
    """Run `collect` from the command line."""
    stop_like_ctrl_c()
    try:
        print(f"wrote {collect(config)}")
    except KeyboardInterrupt:
        raise SystemExit(
            "stopped; the finished episodes are kept, and the same command goes on from there"
        ) from None
    except (CollectError, envs.UnknownTaskError, asd_policy.AsdPolicyError) as error:
        raise SystemExit(f"collect: {error}") from error


if __name__ == "__main__":
    main()
