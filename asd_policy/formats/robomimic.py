"""Diffusion policies trained by robomimic (v0.2 to v0.5): ``model_epoch_600.pth``.

Weights are the moving average where the file has one. Sizes come from the tensors, since robomimic
itself ignores those in the configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.formats.encoder_weights import crop_options, robomimic_encoder, same_options
from asd_policy.formats.native import Checkpoint
from asd_policy.formats.weights import affine, filled, part, unet_options, values
from asd_policy.policies.normalizer import Normalizer
from asd_policy.policies.schedulers import chain_and_parametrization
from asd_policy.policies.spec import ObservationKey, PolicySpec
from asd_policy.sampling.chain import Posterior

_TASKS = {
    "Lift": "lift",
    "PickPlaceCan": "can",
    "NutAssemblySquare": "square",
    "TwoArmTransport": "transport",
    "ToolHang": "tool_hang",
}
_NETWORK = "policy.noise_pred_net."
_ENCODERS = "policy.obs_encoder.nets.obs.obs_nets."
_N_GROUPS = 8  # what robomimic always builds


def recognises(content: Any) -> bool:
    """Whether a file's content is a robomimic checkpoint, of whatever algorithm."""
    return isinstance(content, Mapping) and {"model", "config", "algo_name"} <= set(content)


def read(content: Mapping[str, Any], where: str, posterior: Posterior = "ratio") -> Checkpoint:
    """The checkpoint of a file's content.

    Args:
        content: What ``TorchFile`` gives.
        where: The file, for messages.
        posterior: As in ``GaussianChain.ddpm``; robomimic's own evaluations ran with ``table``.

    Raises:
        CheckpointError: If the policy is one that is not supported, or its parts do not fit.
    """
    if content["algo_name"] != "diffusion_policy":
        raise CheckpointError(
            f"{where}: algo_name: expected 'diffusion_policy', got {content['algo_name']!r}"
        )
    config = _json(content["config"], where)
    model = content["model"]
    if not isinstance(model, Mapping) or not isinstance(model.get("nets"), Mapping):
        raise CheckpointError(f"{where}: model: expected a dictionary with 'nets'")
    ema = model.get("ema")
    tensors = ema if isinstance(ema, Mapping) else model["nets"]
    network = part(tensors, _NETWORK)
    unknown = sorted(n for n in tensors if not str(n).startswith((_NETWORK, _ENCODERS)))
    if unknown:
        raise CheckpointError(f"{where}: tensors outside of {_NETWORK}: {unknown[:4]}")
    observations = _observations(content, config, where)
    encoder, weights = None, dict(network)
    if any(entry.image for entry in observations):
        encoder, encoders = _encoders(config, tensors, observations, where)
        weights = {f"network.{name}": tensor for name, tensor in network.items()} | encoders
    algo = _object(config, "algo", where)
    horizon = _object(algo, "horizon", where)
    kind = "ddpm" if _object(algo, "ddpm", where).get("enabled") else "ddim"
    scheduler = _object(algo, kind, where)
    steps = scheduler.get("num_inference_timesteps") if kind == "ddpm" else None
    chain, parametrization = chain_and_parametrization(
        kind.upper(), scheduler, steps, posterior, where
    )
    actions = _Actions(content, config, where)
    spec = PolicySpec(
        task=_task(content),
        observations=observations,
        action_dim=actions.dim,
        action_mode=actions.mode,
        action_rotation=actions.rotation,
        obs_horizon=horizon.get("observation_horizon", 0),
        pred_horizon=horizon.get("prediction_horizon", 0),
        action_horizon=horizon.get("action_horizon", 0),
        first_action=horizon.get("observation_horizon", 0) - 1,
        network=unet_options(network, _N_GROUPS, where),
        encoder=encoder,
        chain=chain,
        parametrization=parametrization,
    )
    normalizers = {"action": actions.normalizer(spec.planned_dim)}
    for entry in spec.observations:
        normalizers[entry.key] = _observation_normalizer(content, entry, where)
    notes = {"format": "robomimic", "weights": "ema" if tensors is ema else "nets"}
    return Checkpoint(spec, filled(spec, weights, where), normalizers, notes)


class _Actions:
    """The parts of an action vector and how each was normalised."""

    def __init__(self, content: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
        train = _object(config, "train", where)
        # Before v0.4 there was one key, and actions were used as they are.
        self.keys = train.get("action_keys") or ["actions"]
        self.where = where
        if not isinstance(self.keys, list):
            raise CheckpointError(f"{where}: train.action_keys: expected a list, got {self.keys!r}")
        options = train.get("action_config") or {}
        self.statistics = content.get("action_normalization_stats")
        shapes = content.get("shape_metadata")
        self.planned = shapes.get("ac_dim") if isinstance(shapes, Mapping) else None
        if type(self.planned) is not int:
            raise CheckpointError(f"{where}: shape_metadata.ac_dim: got {self.planned!r}")
        converted = [
            key
            for key in self.keys
            if (options.get(key) or {}).get("format") == "rot_6d" or str(key).endswith("rot_6d")
        ]
        six = len(converted) == 1 and self.keys.index(converted[0]) == 1 and self.planned == 10
        if converted and not six:
            raise CheckpointError(
                f"{where}: actions {self.keys} of {self.planned} numbers: rotations of six numbers "
                "are run for one arm, as position, rotation, gripper"
            )
        target = (options.get(converted[0]) or {}).get("convert_at_runtime") if six else None
        if target not in (None, "rot_axis_angle"):
            raise CheckpointError(
                f"{where}: rotations that become {target!r}; only 'rot_axis_angle' is run"
            )
        self.rotation = "rotation_6d" if six else None
        self.dim = 7 if six else self.planned
        self.mode = _action_mode(self.keys, content)

    def normalizer(self, size: int) -> Normalizer:
        """What maps raw actions to the network's: robomimic stores the inverse."""
        if self.statistics is None:
            return Normalizer(torch.ones(size).double(), torch.zeros(size).double())
        scales, offsets = [], []
        for key in self.keys:
            entry = self.statistics.get(key) if isinstance(self.statistics, Mapping) else None
            if not isinstance(entry, Mapping) or not {"scale", "offset"} <= set(entry):
                raise CheckpointError(
                    f"{self.where}: action_normalization_stats has no scale and offset of {key!r}"
                )
            scales.append(_vector(entry["scale"], f"{key}.scale", self.where))
            offsets.append(_vector(entry["offset"], f"{key}.offset", self.where))
        scale, offset = torch.cat(scales), torch.cat(offsets)
        if bool((scale == 0).any()) or len(offset) != len(scale):
            raise CheckpointError(f"{self.where}: action_normalization_stats: a scale of zero")
        return affine(1 / scale, -offset / scale, size, "action", self.where)


def _action_mode(keys: list[Any], content: Mapping[str, Any]) -> str:
    """What actions mean: their names may say it, or else the controllers of the environment."""
    if any("abs" in str(key).rsplit("/", 1)[-1] for key in keys):
        return "absolute"
    if keys != ["actions"]:
        return "delta"
    metadata = content.get("env_metadata")
    arguments = metadata.get("env_kwargs") if isinstance(metadata, Mapping) else None
    found = arguments.get("controller_configs") if isinstance(arguments, Mapping) else None
    modes = {
        mode
        for controller in (found if isinstance(found, list) else [found])
        for arm in _arms(controller)
        for mode in _meant(arm)
    }
    if len(modes) > 1:
        return "unknown"
    return modes.pop() if modes else "delta"


def _meant(arm: Mapping[str, Any]) -> set[str]:
    """What a controller says of its actions; two answers, where its options contradict each other.

    robosuite 1.5 reads ``input_type``, versions before it ``control_delta``; both are deltas by
    default.
    """
    meant = {str(arm["input_type"])} if arm.get("input_type") else set()
    if "control_delta" in arm:
        meant.add("delta" if arm["control_delta"] else "absolute")
    return meant or {"delta"}


def _arms(controller: Any) -> list[Mapping[str, Any]]:
    """The controllers of the arms: one of robosuite 1.4's, or those in a composite of 1.5's."""
    if not isinstance(controller, Mapping):
        return []
    parts = controller.get("body_parts")
    if not isinstance(parts, Mapping):
        return [controller]
    arms = parts.get("arms")
    parts = {**parts, **arms} if isinstance(arms, Mapping) else parts
    return [
        {"input_type": "delta", **parts[side]}  # nothing else is read there, and that by default
        for side in ("right", "left")
        if isinstance(parts.get(side), Mapping)
    ]


def _observations(
    content: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[ObservationKey, ...]:
    """The entries of a frame; robomimic concatenates them in alphabetical order."""
    modalities = _object(
        _object(_object(config, "observation", where), "modalities", where), "obs", where
    )
    other = [key for name in ("depth", "scan") for key in modalities.get(name, ())]
    if other:
        raise CheckpointError(f"{where}: observations {other}: depth and scans are not supported")
    # Images were called so before v0.3.
    images = [key for name in ("rgb", "image") for key in modalities.get(name, ())]
    shapes = _object(_object(content, "shape_metadata", where), "all_shapes", where)
    keys = [*modalities.get("low_dim", ()), *images]
    if not set(keys) <= set(shapes):
        raise CheckpointError(f"{where}: observations {keys!r}: shapes known of {sorted(shapes)}")
    return tuple(
        ObservationKey(key, tuple(shapes[key]), image=key in images) for key in sorted(keys)
    )


def _encoders(
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    observations: tuple[ObservationKey, ...],
    where: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and tensors of the image encoders, one for each camera."""
    encoder = _object(_object(config, "observation", where), "encoder", where)
    rgb = _object(encoder, "rgb" if "rgb" in encoder else "image", where)
    crop = crop_options(rgb, where)["crop"]
    kinds: list[dict[str, Any]] = []
    weights: dict[str, Any] = {}
    for number, entry in enumerate(entry for entry in observations if entry.image):
        own = part(tensors, f"{_ENCODERS}{entry.key}.")
        options, ours = robomimic_encoder(own, where)
        options |= {"crop": crop, "temperature": float(values(own["pool.temperature"]).item())}
        if crop is not None:
            # robomimic rounds half a pixel down.
            options["crop_corner"] = [
                (side - cut) // 2 for side, cut in zip(entry.shape[1:], crop, strict=True)
            ]
        kinds.append(options)
        weights |= {f"encoders.{number}.{name}": tensor for name, tensor in ours.items()}
    return {"shared": False, **same_options(kinds, where)}, weights


def _observation_normalizer(
    content: Mapping[str, Any], entry: ObservationKey, where: str
) -> Normalizer:
    statistics = content.get("obs_normalization_stats")
    ones, zeros = torch.ones(entry.scales).double(), torch.zeros(entry.scales).double()
    if statistics is None or (entry.image and entry.key not in statistics):
        return Normalizer(ones, zeros)
    found = statistics.get(entry.key) if isinstance(statistics, Mapping) else None
    # Up to v0.3 mean and std, from v0.4 offset and scale: (x - offset) / scale.
    for offset_name, scale_name in (("offset", "scale"), ("mean", "std")):
        if isinstance(found, Mapping) and {offset_name, scale_name} <= set(found):
            offset = _vector(found[offset_name], f"{entry.key}.{offset_name}", where)
            scale = _vector(found[scale_name], f"{entry.key}.{scale_name}", where)
            return affine(1 / scale, -offset / scale, entry.scales, entry.key, where)
    raise CheckpointError(f"{where}: obs_normalization_stats says nothing of {entry.key!r}")


def _task(content: Mapping[str, Any]) -> str:
    metadata = content.get("env_metadata")
    name = metadata.get("env_name") if isinstance(metadata, Mapping) else None
    return _TASKS.get(str(name), str(name or "unknown"))


def _json(text: Any, where: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: config: expected JSON: {error}") from error
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{where}: config: expected a JSON object")
    return config


def _object(parent: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = parent.get(name)
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{where}: {name}: expected a dictionary, got {type(value).__name__}")
    return value


def _vector(numbers: Any, name: str, where: str) -> Tensor:
    try:
        return torch.tensor(numbers, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where}: {name}: expected numbers: {error}") from error
