"""Demonstrations on disk, and the windows of them that a diffusion policy is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from torch import Tensor

from envs.pusht_keypoints import block_keypoints


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Episodes laid end to end.

    Attributes:
        observations: For each key ``(steps, *shape)`` float32; of an image, bytes ``(steps, height,
            width, 3)``.
        actions: ``(steps, action_dim)`` float32, of the asked mode.
        episode_ends: Index one past each episode's last step, ``(episodes,)``.
    """

    observations: dict[str, Tensor]
    actions: Tensor
    episode_ends: np.ndarray

    def digest(self) -> str:
        """SHA-256 of the content, wherever it was read from."""
        digest = hashlib.sha256()
        arrays = {key: self.observations[key].numpy() for key in sorted(self.observations)}
        arrays |= {"action": self.actions.numpy(), "ends": self.episode_ends.astype(np.int64)}
        for key, array in arrays.items():
            digest.update(f"{key} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load_demonstrations(
    paths: str | Path | Sequence[str | Path], keys: list[str], action_mode: str
) -> Demonstrations:
    """Read demonstrations: robomimic HDF5 files, or the PushT zarr of Chi et al.

    Args:
        paths: ``*.hdf5`` or ``*.zarr``, one or several.
        keys: Observation keys to read, in any order.
        action_mode: Which actions: ``delta`` (robomimic's ``actions``), ``absolute`` (its
            ``actions_abs``) or ``position`` (PushT's).

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If the file is of neither kind, or lacks a key or the actions.
    """
    several = [paths] if isinstance(paths, (str, Path)) else paths
    parts = [_load(Path(path), keys, action_mode) for path in several]
    ends = np.cumsum([0] + [len(part.actions) for part in parts])
    return Demonstrations(
        {key: torch.cat([part.observations[key] for part in parts]) for key in keys},
        torch.cat([part.actions for part in parts]),
        np.concatenate([end + part.episode_ends for end, part in zip(ends, parts, strict=False)]),
    )


def _load(path: Path, keys: list[str], action_mode: str) -> Demonstrations:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no demonstrations there; make some with `python -m checkpoints.collect`, or "
            "see the policy's card for where its data comes from"
        )
    if path.suffix in (".hdf5", ".h5"):
        return _load_robomimic(path, keys, action_mode)
    if path.suffix == ".zarr" and action_mode == "position":
        return _load_pusht(path, keys)
    raise ValueError(
        f"{path}: expected a robomimic .hdf5 file, or the PushT .zarr folder for actions of mode "
        f"'position'; the mode is {action_mode!r}"
    )


_ACTION_KEYS = {"delta": "actions", "absolute": "actions_abs"}
# The files that Robomimic publishes have deltas alone.
_MENDS = {
    "actions_abs": ", or learn the deltas: task.action_mode=delta task.action_rotation=null",
}


def _load_robomimic(path: Path, keys: list[str], action_mode: str) -> Demonstrations:
    if action_mode not in _ACTION_KEYS:
        raise ValueError(
            f"{path}: expected actions of mode {sorted(_ACTION_KEYS)}, not {action_mode!r}"
        )
    action_key = _ACTION_KEYS[action_mode]
    observations: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    actions: list[np.ndarray] = []
    with h5py.File(path, "r") as file:
        # demo_10 comes after demo_9: the files are in the order of recording.
        names = sorted(file["data"], key=lambda name: int(name.rsplit("_", 1)[-1]))
        for name in names:
            demo = file["data"][name]
            for key in keys:
                if key not in demo["obs"]:
                    raise ValueError(
                        f"{path}: {name}: no observation {key!r}; there are {sorted(demo['obs'])}"
                    )
                observations[key].append(demo["obs"][key][:])
            if action_key not in demo:
                raise ValueError(
                    f"{path}: {name}: no {action_key!r}; record with `python -m "
                    "checkpoints.collect`, or convert with robomimic's own script"
                    f"{_MENDS.get(action_key, '')}"
                )
            actions.append(demo[action_key][:])
    return Demonstrations(
        {key: _tensor(np.concatenate(parts)) for key, parts in observations.items()},
        _float32(np.concatenate(actions)),
        np.cumsum([len(part) for part in actions]),
    )


def _load_pusht(path: Path, keys: list[str]) -> Demonstrations:
    group: Any = zarr.open(str(path), mode="r")  # zarr 2 and 3 are typed differently
    state = group["data/state"][:]
    # The recorded keypoints lag the recorded pose by a contact step: both the training data and
    # the simulation take theirs from the pose.
    available = {"agent_pos": state[:, :2], "keypoint": block_keypoints(state[:, 2:5])}
    missing = sorted(set(keys) - set(available) - {"image"})
    if missing:
        known = [*sorted(available), "image"]
        raise ValueError(f"{path}: no observations {missing}; there are {known}")
    if "image" in keys:
        available["image"] = _bytes(group["data/img"])
    return Demonstrations(
        {key: _tensor(available[key]) for key in keys},
        _float32(group["data/action"][:]),
        np.asarray(group["meta/episode_ends"][:]),
    )


def _bytes(images: Any) -> np.ndarray:
    """Images that were stored as floats, a part at a time: together they take gigabytes."""
    pixels = np.empty(images.shape, np.uint8)
    for start in range(0, images.shape[0], 1024):  # zarr 3's arrays have no len()
        pixels[start : start + 1024] = np.rint(images[start : start + 1024])
    return pixels


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array) if array.dtype == np.uint8 else _float32(array)


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def window_indices(
    episode_ends: np.ndarray, *, obs_horizon: int, pred_horizon: int, action_horizon: int
) -> np.ndarray:
    """Steps of every training window, ``(windows, pred_horizon)``.

    As in Chi et al.'s ``SequenceSampler``: a window may begin To - 1 steps before its episode and
    end Ta - 1 steps after it; the first and the last step are repeated there.
    """
    windows = []
    start = 0
    for end in episode_ends:
        first = np.arange(-(obs_horizon - 1), end - start - pred_horizon + action_horizon)
        steps = first[:, None] + np.arange(pred_horizon)
        windows.append(start + steps.clip(0, end - start - 1))
        start = end
    return np.concatenate(windows)
