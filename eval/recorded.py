"""Where a policy is followed: its task in the simulator, or recorded observations played back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from numpy.typing import NDArray

import envs
from asd_policy.policies.spec import PolicySpec
from eval.environments import env_maker
from eval.errors import RequestError

Observation = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Source:
    """Episodes to follow a policy through.

    Attributes:
        make_env: Makes the environment; picklable.
        max_steps: Control steps after which an episode is stopped.
        lengths: Observations of each episode where they are recorded; None of a simulator's.
    """

    make_env: Callable[..., gymnasium.Env]
    max_steps: int
    lengths: tuple[int, ...] | None = None

    def check_chunks(self, chunks: int, spec: PolicySpec) -> None:
        """Refuse more chunks than were recorded.

        Raises:
            RequestError: Naming how many there are.
        """
        if self.lengths is None:
            return
        there = sum(-(-length // spec.action_horizon) for length in self.lengths)
        if there < chunks:
            raise RequestError(
                f"chunks: the recorded file holds {there} chunks of {spec.action_horizon} steps, "
                f"in {len(self.lengths)} episodes; expected at most that, got {chunks}"
            )


def source(spec: PolicySpec, recorded: str | None, first_seed: int) -> Source:
    """The episodes of a file, or of the task's simulator where ``recorded`` is None.

    Raises:
        RequestError: If there is neither, or the file is not as `Recording` says.
    """
    if recorded is None:
        if spec.task not in envs.names():
            raise RequestError(
                f"recorded: there is no simulator of task {spec.task!r}; record what the robot "
                "sees, and give recorded=FILE.hdf5"
            )
        return Source(env_maker(spec), envs.spec(spec.task).max_episode_steps)
    recording = Recording(recorded, spec, first_seed)
    recording.close()
    lengths = tuple(recording.lengths)
    return Source(partial(Recording, recorded, spec, first_seed), max(lengths), lengths)


class Recording(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Episodes of an HDF5 file laid out as robomimic's, played back whatever the actions.

    Args:
        path: The file: ``data/NAME/obs/KEY`` of shape ``(T, *shape)`` for every episode and key;
            images as bytes ``(T, height, width, 3)``.
        spec: The policy, whose keys are read.
        first_seed: The seed that plays the first episode; the others follow, and after the last
            the first again.

    Attributes:
        lengths: Observations of each episode.

    Raises:
        RequestError: If the file is not that.
    """

    def __init__(self, path: str | Path, spec: PolicySpec, first_seed: int) -> None:
        self._path, self._first_seed = Path(path), first_seed
        self._keys = [entry.key for entry in spec.observations]
        try:
            self._file = h5py.File(self._path, "r")
        except OSError as error:
            raise RequestError(f"recorded: {path}: not an HDF5 file here: {error}") from error
        data = self._file.get("data")
        if not isinstance(data, h5py.Group) or not len(data):
            raise RequestError(
                f"recorded: {path}: expected data/NAME/obs/KEY for each episode, as robomimic "
                f"lays them out; there are {sorted(self._file)}"
            )
        # demo_10 comes after demo_9.
        self._names = sorted(data, key=lambda name: (len(name), name))
        self.lengths = [self._length(name) for name in self._names]
        self._episode: Observation = {}
        self._at = 0

    def _length(self, name: str) -> int:
        recorded = self._file.get(f"data/{name}/obs")
        there = sorted(recorded) if isinstance(recorded, h5py.Group) else []
        missing = [key for key in self._keys if key not in there]
        if missing:
            raise RequestError(
                f"recorded: {self._path}: {name}: the policy sees {self._keys}; the file lacks "
                f"{missing} and has {there}"
            )
        lengths = {len(recorded[key]) for key in self._keys}
        if len(lengths) > 1 or not min(lengths):
            raise RequestError(
                f"recorded: {self._path}: {name}: expected one length of all keys, at least 1; "
                f"got {sorted(lengths)}"
            )
        return int(lengths.pop())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode of this seed."""
        super().reset(seed=seed)
        place = ((seed or 0) - self._first_seed) % len(self._names)
        recorded = self._file["data"][self._names[place]]["obs"]
        self._episode = {key: recorded[key][:] for key in self._keys}
        self._at = 0
        return self._seen(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Go on to what was recorded next; truncated after the last."""
        self._at += 1
        ended = self._at == len(self._episode[self._keys[0]])
        self._at -= ended
        return self._seen(), 0.0, False, ended, {"success": False}

    def _seen(self) -> Observation:
        return {key: values[self._at] for key, values in self._episode.items()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()
