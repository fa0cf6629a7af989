"""The native checkpoint: a folder with ``config.json`` and ``model.safetensors``.

Beside them may lie ``gain.safetensors`` (see ``gain``) and ``draft``, a checkpoint of the same
policy with a smaller network.

The configuration is plain JSON and the weights are safetensors, so that nothing in a checkpoint
can run. The network may be stored in half precision; it is read as float32, in which it runs.
Reading is strict: an unknown or missing field or tensor, or a shape that disagrees, is an
error that names it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from asd_policy.errors import AsdPolicyError, CheckpointError
from asd_policy.policies.normalizer import Normalizer
from asd_policy.policies.spec import PolicySpec
from asd_policy.sampling import Sampler, Speculative

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
GAIN_FILE = "gain.safetensors"
DRAFT_FOLDER = "draft"
_NORMALIZER = (torch.float32, torch.float64)
FORMAT = "asd_policy"
VERSION = 3
_COUNT = "num_batches_tracked"
STORED = (torch.float32, torch.float16, torch.bfloat16)
"""Types in which a network's tensors may lie in the file."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A policy at rest.

    Attributes:
        spec: Everything but the tensors.
        network: The network with its weights, in evaluation mode.
        normalizers: One for each observation key, flattened, and one named ``action``.
        provenance: Free JSON notes on how the weights were made; never read by the library.
    """

    spec: PolicySpec
    network: nn.Module
    normalizers: Mapping[str, Normalizer]
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse normalisers that do not fit the specification."""
        sizes = self.spec.normalizer_sizes
        if set(self.normalizers) != set(sizes):
            raise CheckpointError(
                f"normalisers: expected {sorted(sizes)}, got {sorted(self.normalizers)}"
            )
        for key, size in sizes.items():
            if len(self.normalizers[key].scale) != size:
                raise CheckpointError(
                    f"normaliser {key!r}: expected {size} values, got "
                    f"{len(self.normalizers[key].scale)}"
                )
        if bool((self.normalizers["action"].scale == 0).any()):
            raise CheckpointError("normaliser 'action': a scale of zero could not be undone")


def save_checkpoint(
    checkpoint: Checkpoint, directory: str | Path, *, stored: torch.dtype = torch.float32
) -> None:
    """Write a checkpoint folder beside the old one, and let it take the old one's place, whole.

    That takes two renames: a process killed between them leaves no folder, but the old one as
    ``.NAME.….old``, which the next save puts back first. Other files in the folder (a card, say)
    are kept; a gain only if configuration and weights are what they were, since it belongs to them.

    Args:
        checkpoint: What to write.
        directory: Where to.
        stored: Type of the network's tensors in the file: `torch.float32`, or
            `torch.float16` or `torch.bfloat16`, which round the weights and halve the file.

    Raises:
        CheckpointError: If the path is there and is not a folder, the type is another, or a weight
            is beyond its range.
    """
    if stored not in STORED:
        raise CheckpointError(f"stored: expected one of {STORED}, got {stored}")
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: expected a folder or nothing, found a file")
    directory.parent.mkdir(parents=True, exist_ok=True)
    if not directory.exists():
        _put_back(directory)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "policy": checkpoint.spec.to_dict(),
        "provenance": dict(checkpoint.provenance),
    }
    tensors = {
        # A count of batches is soon beyond float16.
        f"network.{name}": value.to(torch.float32 if name.endswith(_COUNT) else stored)
        for name, value in checkpoint.network.state_dict().items()
    }
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"tensor {name} holds NaN or infinity as {tensor.dtype}")
    for key, normalizer in checkpoint.normalizers.items():
        tensors[f"normalizer.{key}.scale"] = normalizer.scale
        tensors[f"normalizer.{key}.offset"] = normalizer.offset
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        staging.chmod(0o755)
        if directory.exists():
            shutil.copytree(directory, staging, dirs_exist_ok=True)
        (staging / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        (staging / WEIGHTS_FILE).write_bytes(save(contents))
        if not all(_same_file(directory / n, staging / n) for n in (CONFIG_FILE, WEIGHTS_FILE)):
            (staging / GAIN_FILE).unlink(missing_ok=True)
        # A folder cannot replace a folder that is not empty: the old one steps aside first.
        retired = staging.with_name(staging.name + ".old")
        if directory.exists():
            os.replace(directory, retired)
        try:
            os.replace(staging, directory)
        except BaseException:
            if retired.exists():
                os.replace(retired, directory)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _put_back(directory: Path) -> None:
    """Undo the first rename of a save that was killed before its second."""
    for retired in directory.parent.glob(f".{glob.escape(directory.name)}.*.old"):
        # Another checkpoint's name may begin with this one's and a dot.
        if "." not in retired.name[len(directory.name) + 2 : -len(".old")]:
            os.replace(retired, directory)
            return


def _same_file(old: Path, new: Path) -> bool:
    return old.is_file() and old.read_bytes() == new.read_bytes()


def load_checkpoint(directory: str | Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: Naming what is missing, unknown or of the wrong shape.
    """
    directory = Path(directory)
    config = _read_config(directory)
    try:
        spec = PolicySpec.from_dict(config["policy"])
        spec.build_chain()
        with torch.device("meta"):
            network = spec.build_network()
    except (AsdPolicyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; a checkpoint is {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    weights = {f"network.{k}": tuple(v.shape) for k, v in network.state_dict().items()}
    expected = dict(weights)
    for key, size in spec.normalizer_sizes.items():
        expected[f"normalizer.{key}.scale"] = expected[f"normalizer.{key}.offset"] = (size,)
    _check_tensors(path, tensors, expected)
    # Memory of their own: where tensors begin in a file would decide how kernels round.
    network.load_state_dict(
        {n.removeprefix("network."): tensors[n].to(torch.float32, copy=True) for n in weights},
        strict=True,
        assign=True,
    )
    normalizers = {}
    for key in spec.normalizer_sizes:
        try:
            normalizers[key] = Normalizer(
                tensors[f"normalizer.{key}.scale"], tensors[f"normalizer.{key}.offset"]
            )
        except ValueError as error:
            raise CheckpointError(f"{path}: normaliser {key!r}: {error}") from error
    network.requires_grad_(False).eval()
    try:
        return Checkpoint(spec, network, normalizers, config["provenance"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def fingerprint(directory: str | Path, sampler: Sampler | None = None) -> str:
    """SHA-256 of a checkpoint, or of those parts that a sampler's results depend on.

    Args:
        directory: The checkpoint.
        sampler: Whose results it is to identify: only a sampler that drafts by what was learned of
            the policy, or by the draft network, depends on it. None for all that is there.

    Raises:
        CheckpointError: If the configuration or the weights are missing.
    """
    directory = Path(directory)
    digest = hashlib.sha256(weights_digest(directory).encode())
    draft = directory / DRAFT_FOLDER
    parts: list[Path] = []
    if sampler is None or (isinstance(sampler, Speculative) and sampler.uses_calibration):
        parts.append(directory / GAIN_FILE)
    if sampler is None or (isinstance(sampler, Speculative) and sampler.uses_draft_model):
        parts += [draft / CONFIG_FILE, draft / WEIGHTS_FILE]
    for path in parts:
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def weights_digest(directory: str | Path) -> str:
    """SHA-256 over the configuration and the weights.

    Raises:
        CheckpointError: If one of them is missing.
    """
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        path = Path(directory) / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; expected a checkpoint folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    fields = {"format", "version", "policy", "provenance"}
    if not isinstance(config, dict) or set(config) != fields:
        found = sorted(config) if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(f"{path}: expected the fields {sorted(fields)}, got {found}")
    if config["format"] != FORMAT or config["version"] not in range(1, VERSION + 1):
        raise CheckpointError(
            f"{path}: expected format {FORMAT!r} version {VERSION}, got {config['format']!r} "
            f"version {config['version']!r}"
        )
    if not isinstance(config["policy"], dict) or not isinstance(config["provenance"], dict):
        raise CheckpointError(f"{path}: 'policy' and 'provenance' must be objects")
    if config["version"] == 1:
        _from_version_1(config["policy"])
    if config["version"] <= 2:
        _from_version_2(config["policy"])
    return config


def _from_version_1(policy: dict[str, Any]) -> None:
    """Say what went without saying: Push-T and Lift were the tasks, and quaternions left alone."""
    policy["action_mode"] = "position" if policy.get("task") == "pusht" else "delta"
    policy["action_rotation"] = None
    for entry in policy["observations"] if isinstance(policy.get("observations"), list) else []:
        if isinstance(entry, dict):
            entry["quaternions"] = []


def _from_version_2(policy: dict[str, Any]) -> None:
    """Say what went without saying: no images, and the newest frame's action is the first."""
    policy |= {"encoder": None, "context": "repeated", "action_limits": None}
    for entry in policy["observations"] if isinstance(policy.get("observations"), list) else []:
        if isinstance(entry, dict):
            entry["image"] = False
    horizon = policy.get("obs_horizon")
    policy["first_action"] = horizon - 1 if isinstance(horizon, int) else horizon


def _check_tensors(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unknown:
        raise CheckpointError(f"{path}: missing tensors {missing}, unknown tensors {unknown}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{path}: tensor {name}: expected shape {shape}, got {tuple(tensor.shape)}"
            )
        allowed = STORED if name.startswith("network.") else _NORMALIZER
        if tensor.dtype not in allowed:
            raise CheckpointError(
                f"{path}: tensor {name}: expected {' or '.join(map(str, allowed))}, got "
                f"{tensor.dtype}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: tensor {name} holds NaN or infinity")
