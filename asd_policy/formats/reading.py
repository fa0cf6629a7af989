"""Reads a checkpoint of any format that is known, and says which it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asd_policy.errors import CheckpointError, SamplerError
from asd_policy.formats import beso, chi, lerobot, robomimic
from asd_policy.formats.native import CONFIG_FILE, Checkpoint, load_checkpoint
from asd_policy.formats.torch_files import TorchFile
from asd_policy.sampling.chain import Posterior

FORMATS = {
    "native": "a folder with config.json and model.safetensors, as this library writes it",
    "lerobot": "a folder of LeRobot's DiffusionPolicy (config.json, model.safetensors)",
    "diffusion_policy": "a .ckpt of Diffusion Policy (Chi et al.)",
    "robomimic": "a .pth of robomimic's diffusion_policy",
    "beso": "a folder of a BESO run (.hydra/config.yaml, model_state_dict.pth)",
}
"""The formats that are read, and what they look like."""

_FILES = {"diffusion_policy": chi, "robomimic": robomimic}


def read_checkpoint(
    path: str | Path, posterior: Posterior = "ratio", scaler: str | Path | None = None
) -> Checkpoint:
    """Read a checkpoint of any known format; nothing in it is run.

    Args:
        path: A file or a folder.
        posterior: How an imported policy's DDPM rounds, as in ``GaussianChain.ddpm``: ``ratio`` as
            today's diffusers, ``table`` as the one that diffusion_policy and robomimic pin. A
            native checkpoint says it itself.
        scaler: For BESO alone, whose runs lack them: a ``.npz`` file with the statistics of the
            training data (``x_mean``, ``x_std``, ``y_bounds``, ``y_mean``, ``y_std``, …).

    Raises:
        CheckpointError: If the format is none of these, or the checkpoint is missing, incomplete,
            damaged, or asks for something that is not supported.
    """
    with recognised(path, scaler) as (_, read):
        return read(posterior)


@contextmanager
def recognised(
    path: str | Path, scaler: str | Path | None = None
) -> Iterator[tuple[str, Callable[[Posterior], Checkpoint]]]:
    """The name of a checkpoint's format, and what reads it while the context lasts.

    Raises:
        CheckpointError: If the format is none that is known.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: missing; expected a checkpoint: {_known()}")
    if path.is_dir():
        if lerobot.recognises(path):
            yield "lerobot", lambda posterior: _imported(path, lerobot.read, path, posterior)
        elif beso.recognises(path):
            yield "beso", lambda _: _imported(path, beso.read, path, scaler)
        elif (path / CONFIG_FILE).is_file():
            yield "native", lambda _: load_checkpoint(path)
        else:
            raise CheckpointError(f"{path}: no checkpoint of a known format: {_known()}")
        return
    with TorchFile(path) as file:
        content = file.content()
        name = _kind(path, content)
        read = _FILES[name].read
        yield name, lambda posterior: _imported(path, read, content, str(path), posterior)


def _imported(path: Path, read: Callable[..., Checkpoint], *arguments: Any) -> Checkpoint:
    """Read other people's data, of which any part may be of any type."""
    try:
        return read(*arguments)
    except SamplerError as error:  # a chain or a prediction that does not exist
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: not as its format says: {type(error).__name__}: {error}"
        ) from error


def _kind(path: Path, content: Any) -> str:
    for name, module in _FILES.items():
        if module.recognises(content):
            return name
    keys = sorted(map(str, content))[:8] if isinstance(content, dict) else type(content).__name__
    raise CheckpointError(f"{path}: holds {keys}, which is no known format: {_known()}")


def _known() -> str:
    return "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
