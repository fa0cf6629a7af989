"""The records of an evaluation: what is run, how it ended, what planning took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

import asd_policy
from asd_policy.formats import fingerprint
from asd_policy.policies import Policy
from asd_policy.sampling import parse_sampler
from eval.environments import maker
from eval.errors import EvaluationError


@dataclass(frozen=True)
class Experiment:
    """What all episodes of one task share.

    Attributes:
        task: The task's name, as in `envs.make`.
        checkpoint: Folder of the policy.
        env_options: What the policy's environment is told, as in `envs.make`.
        fingerprints: For each sampler SHA-256 of what its episodes depend on in the checkpoint,
            under which they are kept.
        num_steps: K, the steps of the policy's reverse process.
        max_steps: Control steps after which an episode is stopped.
        device: Where the network runs.
    """

    task: str
    checkpoint: Path
    env_options: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    num_steps: int
    max_steps: int
    device: str

    @property
    def make_env(self) -> Callable[..., gymnasium.Env]:
        """Makes one environment; picklable, and takes the options of `envs.make`."""
        return maker(self.task, self.env_options)

    def load_policy(self) -> Policy:
        """The policy that is to be evaluated.

        Raises:
            EvaluationError: If the checkpoint has changed: results are kept by what it was when
                they were asked for, which may be days ago.
        """
        policy = asd_policy.load_policy(self.checkpoint, device=self.device)
        # Read after the weights: a checkpoint that is overwritten meanwhile is noticed, too.
        for sampler, asked in self.fingerprints.items():
            found = fingerprint(self.checkpoint, parse_sampler(sampler))
            if found != asked:
                raise EvaluationError(
                    f"{self.checkpoint}: expected the checkpoint that this evaluation began with "
                    f"({asked[:12]} for {sampler}), found another ({found[:12]}): restore it, or "
                    "start the evaluation of the new one"
                )
        return policy


@dataclass(frozen=True, order=True)
class Episode:
    """One episode to run: the initial state is the seed's, the policy's noise (seed, repeat)'s."""

    sampler: str
    seed: int
    repeat: int

    def __str__(self) -> str:
        """The episode in words."""
        return f"seed {self.seed}, repeat {self.repeat}, sampler {self.sampler}"


@dataclass(frozen=True)
class Outcome:
    """An episode that ran to its end.

    Attributes:
        episode: Which one.
        steps: Control steps taken.
        reward: Largest reward of the episode.
        success: Whether it succeeded.
        chunks: Action chunks planned.
        calls: Sequential network calls of all its chunks.
        evaluations: Rows through the network of all its chunks.
    """

    episode: Episode
    steps: int
    reward: float
    success: bool
    chunks: int
    calls: int
    evaluations: int

    def score(self, metric: str) -> float:
        """The value that a task averages: its metric is "reward" or "success"."""
        return self.reward if metric == "reward" else float(self.success)


@dataclass(frozen=True)
class Failure:
    """An episode that an exception ended.

    Attributes:
        episode: Which one.
        traceback: The exception with its traceback, as text.
    """

    episode: Episode
    traceback: str


@dataclass(frozen=True)
class PlannedChunk:
    """One chunk planned for one robot alone.

    Attributes:
        sampler: What planned it.
        seed: Seed of the episode.
        chunk: Which chunk of the episode; other samplers' chunks of the same seed and number were
            planned from the same observations with the same noise.
        seconds: Wall-clock time from observation to actions.
        calls: Sequential network calls.
        evaluations: Rows through the network.
    """

    sampler: str
    seed: int
    chunk: int
    seconds: float
    calls: int
    evaluations: int
