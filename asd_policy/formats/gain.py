"""What was learned of drafting: ``gain.safetensors``, valid for the weights beside it alone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from asd_policy.errors import CheckpointError, SamplerError
from asd_policy.formats.native import GAIN_FILE, weights_digest
from asd_policy.policies.expectation import Expectation
from asd_policy.sampling import Gain

_GAIN = ("basis", "slope", "error")
_EXPECTATION = {field.name: f"expectation.{field.name}" for field in fields(Expectation)}


def save_gain(
    gain: Gain,
    directory: str | Path,
    provenance: Mapping[str, Any],
    expectation: Expectation | None = None,
) -> Path:
    """Write a checkpoint's gain, and which chunks to expect, in one move.

    Args:
        gain: The gain.
        directory: The checkpoint's folder.
        provenance: Free JSON notes on how it was fitted; never read by the library.
        expectation: Which chunks to expect, if that was learned.

    Returns:
        The file.

    Raises:
        CheckpointError: If there is no checkpoint.
    """
    path = Path(directory) / GAIN_FILE
    notes = {"weights": weights_digest(directory), "provenance": json.dumps(dict(provenance))}
    tensors = gain.tensors()
    if expectation is not None:
        tensors |= {_EXPECTATION[name]: tensor for name, tensor in expectation.tensors().items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{GAIN_FILE}.", delete=False) as new:
        new.write(save(tensors, metadata=notes))
    os.chmod(new.name, 0o644)
    os.replace(new.name, path)
    return path


def load_gain(directory: str | Path, clip: float | None) -> tuple[Gain | None, Expectation | None]:
    """Read a checkpoint's gain and which chunks to expect; None for what it has not.

    Args:
        directory: The checkpoint's folder.
        clip: The model's own bound on x̂0.

    Raises:
        CheckpointError: If the file is damaged or was fitted to other weights.
    """
    path = Path(directory) / GAIN_FILE
    if not path.is_file():
        return None, None
    mend = "run `python -m eval.calibrate` again, or delete the file"
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            names = set(file.keys())
            # Copies lie as any tensor does. In the file's own memory they lie as its header's
            # length has it, and products of matrices round otherwise.
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file: {error}; {mend}"
        ) from error
    persistence = _EXPECTATION["persistence"]
    if {*_EXPECTATION.values()} - names == {persistence}:
        # Older files lack it: what they expect corrects the mean.
        names.add(persistence)
        tensors[persistence] = torch.zeros(())
    if names not in ({*_GAIN}, {*_GAIN, *_EXPECTATION.values()}):
        raise CheckpointError(
            f"{path}: expected the tensors {sorted(_GAIN)}, perhaps with "
            f"{sorted(_EXPECTATION.values())}; got {sorted(names)}; {mend}"
        )
    if notes.get("weights") != weights_digest(directory):
        raise CheckpointError(f"{path}: fitted to other weights than those beside it: {mend}")
    try:
        gain = Gain(**{name: tensors[name] for name in _GAIN}, clip=clip)
        if len(names) == len(_GAIN):
            return gain, None
        return gain, Expectation(**{key: tensors[name] for key, name in _EXPECTATION.items()})
    except (SamplerError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}; {mend}") from error
