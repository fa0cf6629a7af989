"""Reading an observation dictionary: every mistake is named before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asd_policy.errors import ObservationError
from asd_policy.policies.rotation import quaternion_to_6d
from asd_policy.policies.spec import ObservationKey, PolicySpec


def read_observation(
    spec: PolicySpec, observation: Mapping[str, Any], batch: int | None
) -> NDArray[np.float32]:
    """Flatten one frame of observations in the checkpoint's order.

    Entries that the policy does not use are ignored: a robot reports more than a policy sees.

    Args:
        spec: The policy's specification.
        observation: For each key ``shape`` values, or ``(batch, *shape)``. An image ``(C, H, W)``
            is floats in [0, 1], or bytes, which may also come as a camera gives them ``(H, W, C)``.
        batch: Number of episodes, or None for one without a batch axis.

    Returns:
        ``(batch or 1, observation_dim)``.

    Raises:
        ObservationError: On a missing key, another shape, a type that is not a real number, or a
            value that is not finite.
    """
    if not isinstance(observation, Mapping):
        raise ObservationError(
            f"expected a dictionary with the keys {_keys(spec)}, got {type(observation).__name__}"
        )
    missing = [entry.key for entry in spec.observations if entry.key not in observation]
    if missing:
        raise ObservationError(
            f"missing keys {missing}: the policy for {spec.task!r} expects {_keys(spec)}, got "
            f"{sorted(map(str, observation))}"
        )
    parts = []
    for entry in spec.observations:
        shape = entry.shape if batch is None else (batch, *entry.shape)
        value = _as_array(entry, observation[entry.key])
        if value.shape != shape:
            raise ObservationError(
                f"{entry.key}: expected shape {shape}, got {value.shape}{_hint(batch)}"
            )
        if not np.isfinite(value).all():
            raise ObservationError(
                f"{entry.key}: expected finite float32 values, got NaN or infinity in "
                f"{np.count_nonzero(~np.isfinite(value))} of {value.size}"
            )
        parts.append(value.reshape(batch or 1, entry.size))
    return np.concatenate(parts, axis=1)


def features(entries: Sequence[ObservationKey], raw: Tensor) -> Tensor:
    """What the network sees of raw frames, before normalising.

    Args:
        entries: The observation entries, in order.
        raw: ``(..., observation_dim)``.

    Returns:
        ``(..., features)``: the same where no entry has quaternions.
    """
    parts, start, offset = [], 0, 0
    for entry in entries:
        for position in entry.quaternions:
            at = offset + position
            parts += [raw[..., start:at], quaternion_to_6d(raw[..., at : at + 4])]
            start = at + 4
        offset += entry.size
    return torch.cat([*parts, raw[..., start:]], dim=-1) if parts else raw


def _as_array(entry: ObservationKey, value: Any) -> NDArray[np.float32]:
    key = entry.key
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ObservationError(f"{key}: expected an array on the CPU: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ObservationError(
            f"{key}: expected real numbers (float or integer), got dtype {array.dtype}"
        )
    if entry.image:
        return _as_image(entry, array)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _as_image(entry: ObservationKey, array: NDArray[Any]) -> NDArray[np.float32]:
    """Channels first and in [0, 1]."""
    channels, height, width = entry.shape
    if array.dtype == np.uint8:
        if array.shape[-3:] == (height, width, channels):
            array = np.moveaxis(array, -1, -3)
        return array.astype(np.float32) / 255
    if array.dtype.kind != "f" or array.size == 0 or not 0 <= array.min() <= array.max() <= 1:
        raise ObservationError(
            f"{entry.key}: expected an image as bytes (uint8), or as floats in [0, 1]; got "
            f"{array.dtype}"
            + (f" from {array.min():.4g} to {array.max():.4g}" if array.size else " of no values")
        )
    return array.astype(np.float32)


def _keys(spec: PolicySpec) -> str:
    return ", ".join(f"{entry.key} {entry.shape}" for entry in spec.observations)


def _hint(batch: int | None) -> str:
    if batch is None:
        return " (one episode: reset with a list of seeds to act for several)"
    return f" (the first axis is the {batch} episodes that act)"
