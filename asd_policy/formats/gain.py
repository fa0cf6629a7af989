"""The gain beside the weights: ``gain.safetensors``, valid for those weights alone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from asd_policy.errors import CheckpointError, SamplerError
from asd_policy.formats.native import GAIN_FILE, weights_digest
from asd_policy.sampling import Gain

_TENSORS = ("basis", "slope", "error")


def save_gain(gain: Gain, directory: str | Path, provenance: Mapping[str, Any]) -> Path:
    """Write a checkpoint's gain, in one move.

    Args:
        gain: The gain.
        directory: The checkpoint's folder.
        provenance: Free JSON notes on how it was fitted; never read by the library.

    Returns:
        The file.

    Raises:
        CheckpointError: If there is no checkpoint.
    """
    path = Path(directory) / GAIN_FILE
    notes = {"weights": weights_digest(directory), "provenance": json.dumps(dict(provenance))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in gain.tensors().items()}
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{GAIN_FILE}.", delete=False) as new:
        new.write(save(tensors, metadata=notes))
    os.chmod(new.name, 0o644)
    os.replace(new.name, path)
    return path


def load_gain(directory: str | Path, clip: float | None) -> Gain | None:
    """Read a checkpoint's gain; None if it has none.

    Args:
        directory: The checkpoint's folder.
        clip: The model's own bound on x̂0.

    Raises:
        CheckpointError: If the file is damaged or was fitted to other weights.
    """
    path = Path(directory) / GAIN_FILE
    if not path.is_file():
        return None
    mend = "run `python -m eval.calibrate` again, or delete the file"
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file: {error}; {mend}"
        ) from error
    if names != set(_TENSORS):
        raise CheckpointError(
            f"{path}: expected the tensors {sorted(_TENSORS)}, got {sorted(names)}; {mend}"
        )
    if notes.get("weights") != weights_digest(directory):
        raise CheckpointError(f"{path}: fitted to other weights than those beside it: {mend}")
    try:
        return Gain(**tensors, clip=clip)
    except SamplerError as error:
        raise CheckpointError(f"{path}: {error}; {mend}") from error
