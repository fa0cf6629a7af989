"""Settings read from a configuration; a refusal names the setting, what it may be, what came."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from asd_policy.sampling import Sampler, parse_sampler
from eval.errors import RequestError


def whole(
    config: DictConfig, key: str, least: int, most: int | None = None, default: int | None = None
) -> int:
    """A whole number in a range.

    Args:
        config: Where it is set.
        key: Its name.
        least: The smallest allowed.
        most: The largest allowed; None for any.
        default: What null stands for; None refuses null.

    Raises:
        RequestError: If it is none.
    """
    value = config[key]
    if value is None and default is not None:
        return default
    if not is_whole(value, least) or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"in {least}…{most}"
        raise RequestError(f"{key}: expected a whole number {bounds}, got {value!r}")
    return int(value)


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number of at least this."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def names(config: DictConfig, key: str) -> list[str]:
    """A name or several, all different.

    Raises:
        RequestError: If they are not.
    """
    value = config[key]
    found = list(value) if isinstance(value, ListConfig) else [value]
    if not found or not all(isinstance(name, str) for name in found):
        raise RequestError(f"{key}: expected a name or a list of names, got {value!r}")
    _check_different(key, found)
    return found


def samplers(config: DictConfig, key: str) -> tuple[Sampler, ...]:
    """Samplers, all different even where one has several names.

    Raises:
        RequestError: If they are not.
        asd_policy.SamplerError: If there is no such sampler.
    """
    found = tuple(parse_sampler(name) for name in names(config, key))
    _check_different(key, [str(sampler) for sampler in found])
    return found


def results_folder(kind: str, *checkpoints: Path) -> Path:
    """Where results go if nobody says: by the checkpoints' names.

    Training calls every checkpoint ``checkpoint``; its run's folder has the name then.
    """
    folders = [checkpoint.resolve() for checkpoint in checkpoints]
    found = [f.parent.name if f.name == "checkpoint" else f.name for f in folders]
    return Path("outputs") / kind / "+".join(found)


def switch(config: DictConfig, key: str) -> bool:
    """True or false.

    Raises:
        RequestError: If it is neither.
    """
    value = config[key]
    if not isinstance(value, bool):
        raise RequestError(f"{key}: expected true or false, got {value!r}")
    return value


def device(config: DictConfig) -> str:
    """The device to work on, which is there; ``auto`` by the name of what it comes to.

    Raises:
        RequestError: If PyTorch cannot use it.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise RequestError(f"device: {name!r} cannot be used here: {error}") from error
    return str(name)


def _check_different(key: str, found: Sequence[str]) -> None:
    if len(set(found)) < len(found):
        raise RequestError(f"{key}: the same one is asked for twice: {list(found)}")
