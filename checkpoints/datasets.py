"""Demonstrations on disk, and the windows of them that a diffusion policy is trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from torch import Tensor

from asd_policy.policies.rotation import ARM_VECTOR
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

    Lift's ``object`` comes out as robosuite 1.5 lays it out, whichever version recorded it.

    Args:
        paths: ``*.hdf5`` or ``*.zarr``, one or several.
        keys: Observation keys to read, in any order.
        action_mode: Which actions: ``delta`` (robomimic's ``actions``), ``absolute`` (its
            ``actions_abs``; in files without them ``actions`` that are poses, as Chi et al.
            published them) or ``position`` (``actions`` as they are, such as joints; PushT's).

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If the file is of neither kind, lacks a key or the actions, says that its
            actions are of another mode, or could run code.
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


_ACTION_MODES = ("absolute", "delta", "position")


def _load_robomimic(path: Path, keys: list[str], action_mode: str) -> Demonstrations:
    if action_mode not in _ACTION_MODES:
        raise ValueError(
            f"{path}: expected actions of mode {list(_ACTION_MODES)}, not {action_mode!r}"
        )
    observations: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    actions: list[np.ndarray] = []
    with h5py.File(path, "r") as file:
        if not isinstance(file.get("data"), h5py.Group) or not len(file["data"]):
            raise ValueError(
                f"{path}: expected data/NAME/obs/KEY and data/NAME/actions for each episode, as "
                f"robomimic lays them out; there are {sorted(file)}"
            )
        # demo_10 comes after demo_9: the files are in the order of recording.
        names = sorted(file["data"], key=lambda name: (len(name), name))
        poses = _absolute(json.loads(file["data"].attrs.get("env_args", "0")))
        for name in names:
            demo = file["data"][name]
            actions.append(_actions(path, demo, action_mode, poses))
            for key in keys:
                if key not in demo.get("obs", ()):
                    raise ValueError(
                        f"{path}: {name}: no observation {key!r}; there are "
                        f"{sorted(demo.get('obs', ()))}"
                    )
                values = demo["obs"][key][:]
                if len(values) != len(actions[-1]):
                    raise ValueError(
                        f"{path}: {name}: expected an observation for each of the "
                        f"{len(actions[-1])} actions, got {len(values)} of {key!r}; what was seen "
                        "after the last action is to be left out"
                    )
                if key == "object" and _from_cube_to_hand(demo["obs"]):
                    values[:, 7:] *= -1
                observations[key].append(values)
    return Demonstrations(
        {key: _tensor(np.concatenate(parts)) for key, parts in observations.items()},
        _float32(np.concatenate(actions)),
        np.cumsum([len(part) for part in actions]),
    )


def _actions(path: Path, demo: Any, action_mode: str, poses: bool) -> np.ndarray:
    """An episode's actions; ``poses`` says whether ``env_args`` has the controller take poses.

    The files of Chi et al. hold poses as ``actions``, and still the ``env_args`` of the deltas that
    they were converted from. The numbers tell: a delta is within [-1, 1], the rotation vector of a
    hand that points down is about pi long.
    """
    where = f"{path}: {demo.name.rsplit('/', 1)[-1]}"
    if action_mode == "absolute" and "actions_abs" in demo:
        return demo["actions_abs"][:]
    if "actions" not in demo:
        raise ValueError(f"{where}: no 'actions'; record with `python -m checkpoints.collect`")
    actions = demo["actions"][:]
    if action_mode == "position":
        return actions
    arms = actions.ndim == 2 and actions.shape[1] % ARM_VECTOR == 0
    if not arms:
        raise ValueError(
            f"{where}: expected {ARM_VECTOR} numbers an arm in actions of mode {action_mode!r}, "
            f"got {actions.shape[1:]}; other actions are learned as they are: "
            "task.action_mode=position task.action_rotation=null"
        )
    poses = poses or bool(np.mean(np.any(np.abs(actions) > 1, axis=1)) > 0.5)
    if action_mode == "absolute" and not poses:
        # The files that Robomimic publishes have deltas alone.
        raise ValueError(
            f"{where}: no 'actions_abs', and 'actions' are deltas; record with `python -m "
            "checkpoints.collect`, or convert with robomimic's own script, or learn the deltas: "
            "task.action_mode=delta task.action_rotation=null"
        )
    if action_mode == "delta" and poses:
        raise ValueError(
            f"{where}: expected deltas as 'actions', got absolute poses; learn those "
            "(task.action_mode=absolute task.action_rotation=rotation_6d), record deltas, or have "
            "both with `python -m checkpoints.collect`"
        )
    return actions


def _absolute(env_args: Any, composite: bool = False) -> bool:
    """Whether a controller takes poses; up to robosuite 1.4 ``control_delta`` said so.

    ``input_type`` goes before it, and in a composite controller (``body_parts``) and its parts
    nothing reads it.
    """
    if isinstance(env_args, list):
        return any(_absolute(entry, composite) for entry in env_args)
    if not isinstance(env_args, dict):
        return False
    if env_args.get("input_type"):
        return bool(env_args["input_type"] == "absolute")
    composite = composite or "body_parts" in env_args
    if env_args.get("control_delta") is False and not composite:
        return True
    return any(_absolute(entry, composite) for entry in env_args.values())


def _from_cube_to_hand(observations: Any) -> bool:
    """Whether Lift's last three are those of robosuite 1.4 and older, from the cube to the hand.

    Today's simulator gives them from the hand to the cube. The numbers tell: many copies of
    Robomimic's files have lost the version in ``env_args``.
    """
    values = observations["object"][:]
    if values.shape[1:] != (10,) or "robot0_eef_pos" not in observations:
        return False
    return np.allclose(values[:, 7:], observations["robot0_eef_pos"][:] - values[:, :3], atol=1e-5)


_PLAIN_CODECS = {
    "blosc",
    "bytes",
    "bz2",
    "crc32c",
    "delta",
    "gzip",
    "lz4",
    "lzma",
    "shuffle",
    "transpose",
    "zlib",
    "zstd",
}
"""What may stand between the numbers and the file, by its names in zarr's formats 2 and 3."""


def _refuse_code(store: Path, array: str) -> None:
    """Look at an array's codecs before it is read: among those of numcodecs is ``pickle``."""
    folders = [store / array, *(store / parent for parent in Path(array).parents)]
    for folder in folders:  # a group may hold the metadata of its arrays, "consolidated"
        for name in (".zarray", ".zmetadata", "zarr.json"):
            path = folder / name
            if not path.is_file():
                continue
            try:
                codecs = set(_codecs(json.loads(path.read_bytes())))
            except ValueError as error:
                raise ValueError(f"{path}: not valid JSON: {error}") from error
            if codecs - _PLAIN_CODECS:
                raise ValueError(
                    f"{path}: codecs {sorted(codecs - _PLAIN_CODECS)} may run code that comes with "
                    f"the data: expected {sorted(_PLAIN_CODECS)} alone; store the arrays anew with "
                    "one of them"
                )


def _codecs(metadata: Any) -> Iterator[str]:
    if isinstance(metadata, list):
        for entry in metadata:
            yield from _codecs(entry)
    if not isinstance(metadata, dict):
        return
    for field, value in metadata.items():
        if field not in ("filters", "compressor", "codecs"):
            yield from _codecs(value)
            continue
        for codec in value if isinstance(value, list) else [value]:
            if isinstance(codec, dict):
                yield from (str(codec[key]) for key in ("id", "name") if key in codec)
            elif codec is not None:
                yield str(codec)


def _load_pusht(path: Path, keys: list[str]) -> Demonstrations:
    arrays = ["data/state", "data/action", "meta/episode_ends"]
    for array in arrays + ["data/img"] * ("image" in keys):
        _refuse_code(path, array)
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
