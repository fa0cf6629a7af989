"""Folders of LeRobot's ``DiffusionPolicy``, up to 0.3 (statistics among the weights) and from 0.4.

Nothing but JSON and safetensors is read. Fields that a ``config.json`` lacks have the defaults of
the time at which it was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.formats.encoder_weights import encoder_options, numbered_backbone, same_options
from asd_policy.formats.native import Checkpoint
from asd_policy.formats.weights import Tensors, affine, filled, part, unet_options
from asd_policy.policies.normalizer import Normalizer
from asd_policy.policies.schedulers import chain_and_parametrization
from asd_policy.policies.spec import ObservationKey, PolicySpec
from asd_policy.sampling.chain import Posterior

_DEFAULTS: Mapping[str, Any] = {
    "n_obs_steps": 2,
    "horizon": 16,
    "n_action_steps": 8,
    "n_groups": 8,
    "noise_scheduler_type": "DDPM",
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "num_inference_steps": None,
    "crop_shape": (84, 84),
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
}
"""Of the releases up to 0.4.3; newer ones have other crops and horizons, and write every field."""
_SCHEDULER = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "prediction_type",
    "clip_sample",
    "clip_sample_range",
)
_EPS = 1e-8
_PROCESSORS = {
    "rename_observations_processor",  # to the names that the policy has
    "to_batch_processor",
    "device_processor",
    "normalizer_processor",
    "unnormalizer_processor",
}
_READ = {"STATE": "observation.state", "ENV": "observation.environment_state", "ACTION": "action"}
"""The one feature of each kind that LeRobot's policy looks at, whatever else a data set has."""


def recognises(folder: Path) -> bool:
    """Whether a folder is one of LeRobot's, of whatever policy."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "type" in config and "input_features" in config


def read(folder: Path, posterior: Posterior = "ratio") -> Checkpoint:
    """The checkpoint of a folder.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        posterior: As in ``GaussianChain.ddpm``.

    Raises:
        CheckpointError: If the policy is one that is not supported, or its parts do not fit.
    """
    where = str(folder)
    config = {**_DEFAULTS, **_json(folder / "config.json")}
    if config.get("type") != "diffusion":
        raise CheckpointError(f"{where}: type: expected 'diffusion', got {config.get('type')!r}")
    tensors = _tensors(folder / "model.safetensors")
    observations, kinds = _features(config, "input_features", where)
    actions, _ = _features(config, "output_features", where)
    if [entry.key for entry in actions] != ["action"]:
        raise CheckpointError(f"{where}: output_features: expected 'action' among them")
    unet = _chi_names(part(tensors, "diffusion.unet."))
    encoder, weights = None, dict(unet)
    if any(entry.image for entry in observations):
        encoder, encoders = _encoders(config, tensors, where)
        weights = {f"network.{name}": tensor for name, tensor in unet.items()} | encoders
    options = {name: config[name] for name in _SCHEDULER}
    kind, steps = str(config["noise_scheduler_type"]), config["num_inference_steps"]
    chain, parametrization = chain_and_parametrization(kind, options, steps, posterior, where)
    frames = config["n_obs_steps"]
    spec = PolicySpec(
        task=str(config.get("task") or "unknown"),
        observations=observations,
        action_dim=actions[0].size,
        action_mode="unknown",
        action_rotation=None,
        obs_horizon=frames,
        pred_horizon=config["horizon"],
        action_horizon=config["n_action_steps"],
        first_action=frames - 1 if isinstance(frames, int) else frames,
        network=unet_options(unet, config["n_groups"], where),
        encoder=encoder,
        chain=chain,
        parametrization=parametrization,
    )
    statistics = _Statistics(folder, tensors, config["normalization_mapping"])
    normalizers = {
        entry.key: statistics.normalizer(entry.key, entry.scales, kinds[entry.key])
        for entry in observations
    }
    normalizers["action"] = statistics.normalizer("action", spec.action_dim, "ACTION")
    notes = {"format": "lerobot", "statistics": "weights" if statistics.old else "processors"}
    return Checkpoint(spec, filled(spec, weights, where), normalizers, notes)


def _encoders(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and tensors of the image encoders, in the order of the cameras."""
    own = part(tensors, "diffusion.rgb_encoder.")
    numbers = sorted({int(m[1]) for name in own if (m := re.match(r"(\d{1,3})\.", name))})
    prefixes = [f"{number}." for number in numbers] or [""]
    kinds: list[dict[str, Any]] = []
    weights: dict[str, Any] = {}
    for number, prefix in enumerate(prefixes):
        found = part(own, prefix)
        ours = {
            f"backbone.{name}": tensor
            for name, tensor in numbered_backbone(part(found, "backbone.")).items()
        }
        ours |= {n: t for n, t in found.items() if n.startswith(("pool.nets.", "out."))}
        kinds.append(encoder_options(ours, where))
        weights |= {f"encoders.{number}.{name}": tensor for name, tensor in ours.items()}
    resize, crop = config.get("resize_shape"), config.get("crop_shape")
    if resize is not None:
        # LeRobot then takes the crop from the ratio, whatever crop_shape says.
        ratio = config.get("crop_ratio", 1.0)
        crop = [int(side * ratio) for side in resize] if ratio < 1 else None
    return {
        "shared": not numbers,
        **same_options(kinds, where),
        "resize": resize,
        "antialias": resize is not None,
        "crop": crop,
        "random_crop": bool(config.get("crop_is_random", True)),
    }, weights


class _Statistics:
    """The data's statistics, among the weights (0.3) or in the processors' files (0.4).

    The processors have rules of their own, and those are the ones that LeRobot acts by.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, Tensor], mapping: Mapping[str, Any]
    ) -> None:
        self.folder, self.tensors, self.mapping = folder, tensors, mapping
        self.old = any("normalize_targets." in name for name in tensors)
        self._steps: dict[bool, tuple[Mapping[str, Any], Mapping[str, Tensor]]] = {}

    def normalizer(self, key: str, size: int, kind: str) -> Normalizer:
        """The normaliser of a feature of a kind, of which ``ACTION`` is put out.

        Raises:
            CheckpointError: If its statistics are missing, or a processor does more than LeRobot's
                own.
        """
        where = str(self.folder)
        output = kind == "ACTION"
        mode = self._mode(key, kind, output)
        if mode in (None, "IDENTITY"):
            return affine(torch.ones(1), torch.zeros(1), size, key, where)
        names = {"MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std")}.get(mode)
        if names is None:
            raise CheckpointError(f"{where}: {key}: unknown normalisation {mode!r}")
        first, second = (self._get(key, name, output).double().flatten() for name in names)
        if mode == "MEAN_STD":
            scale = 1 / (second + _EPS)
            return affine(scale, -first * scale, size, key, where)
        width = second - first
        # 0.3 adds eps to every width, 0.4 only to those of zero.
        width = width + _EPS if self.old and not output else width.masked_fill(width == 0, _EPS)
        scale = 2 / width
        return affine(scale, -first * scale - 1, size, key, where)

    def _get(self, key: str, name: str, output: bool) -> Tensor:
        if self.old:
            group = "unnormalize_outputs" if output else "normalize_inputs"
            stored = f"{group}.buffer_{key.replace('.', '_')}.{name}"
            found = self.tensors.get(stored)
        else:
            stored = f"{key}.{name}"
            found = self._processor(output)[1].get(stored)
        if found is None:
            raise CheckpointError(f"{self.folder}: the statistic {stored} is missing")
        return found

    def _mode(self, key: str, kind: str, output: bool) -> Any:
        if self.old:
            return self.mapping.get(kind)
        options, _ = self._processor(output)
        keys = options.get("normalize_observation_keys")
        if keys is not None and not output and key not in keys:
            return None
        return options.get("norm_map", self.mapping).get(kind)

    def _processor(self, output: bool) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """Options and statistics of the step that normalises."""
        if output not in self._steps:
            side, name = ("post", "unnormalizer") if output else ("pre", "normalizer")
            path = self.folder / f"policy_{side}processor.json"
            steps = _json(path).get("steps")
            if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
                raise CheckpointError(f"{path}: steps: expected a list of objects")
            unknown = {str(step.get("registry_name")) for step in steps} - _PROCESSORS
            if unknown:
                raise CheckpointError(
                    f"{path}: steps {sorted(unknown)} are not among those of LeRobot's diffusion "
                    f"policy, {sorted(_PROCESSORS)}, and what they do would be lost"
                )
            found = [step for step in steps if step["registry_name"] == f"{name}_processor"]
            stored = [str(step.get("state_file")) for step in found]
            # A name with a folder in it would lead out of this one.
            if len(found) != 1 or not re.fullmatch(r"[\w.-]+\.safetensors", stored[0]):
                raise CheckpointError(
                    f"{path}: expected one {name}_processor with a state_file, got {stored!r}"
                )
            options = found[0].get("config", {})
            kinds = options.get("norm_map", {}) if isinstance(options, dict) else None
            if not isinstance(kinds, dict) or options.get("eps", _EPS) != _EPS:
                raise CheckpointError(
                    f"{path}: {name}_processor: expected a norm_map and eps {_EPS}, got {options!r}"
                )
            self._steps[output] = options, _tensors(self.folder / stored[0])
        return self._steps[output]


def _features(
    config: Mapping[str, Any], name: str, where: str
) -> tuple[tuple[ObservationKey, ...], dict[str, str]]:
    """The features in the network's order, and the kind of each."""
    features = config.get(name)
    if not isinstance(features, Mapping):
        raise CheckpointError(f"{where}: {name}: expected an object, got {features!r}")
    entries, kinds = [], {}
    for key, feature in features.items():
        if not isinstance(feature, Mapping) or not isinstance(feature.get("shape"), list):
            raise CheckpointError(f"{where}: {name}: {key}: expected a type and a shape")
        kind = str(feature.get("type"))
        if _READ.get(kind, key) != key:
            continue
        kinds[key] = kind
        size = tuple(feature["shape"])
        entries.append(ObservationKey(key, size, image=kinds[key] == "VISUAL"))
    order = {"STATE": 0, "VISUAL": 1, "ENV": 2, "ACTION": 3}
    if not set(kinds.values()) <= set(order):
        raise CheckpointError(f"{where}: {name}: kinds {sorted(set(kinds.values()))}")
    entries.sort(key=lambda entry: order[kinds[entry.key]])  # stable: cameras keep their order
    return tuple(entries), kinds


def _chi_names(unet: Tensors) -> Tensors:
    """LeRobot's names of the U-Net's tensors as Chi's (the networks are one)."""
    renamed = {}
    for name, tensor in unet.items():
        name = re.sub(r"\.conv([12])\.block\.", lambda m: f".blocks.{int(m[1]) - 1}.block.", name)
        name = re.sub(
            r"^(down|up)_modules\.(\d+)\.2\.(weight|bias)$", r"\1_modules.\2.2.conv.\3", name
        )
        renamed[name] = tensor
    return renamed


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    # torch.compile wraps modules, and their names with them.
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(content).__name__}")
    return content
