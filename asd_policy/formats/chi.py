"""Checkpoints of Diffusion Policy (Chi et al.): ``epoch=0250-test_mean_score=1.000.ckpt``.

Weights are the moving average where ``cfg.training.use_ema`` says so. Sizes come from the tensors:
the configuration's interpolations that would need ``eval`` are never evaluated. Policies with
observations as a global condition: low-dimensional (U-Net or transformer), images by robomimic's
encoders ("hybrid") or by the project's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from asd_policy.errors import CheckpointError
from asd_policy.formats.configuration import Config
from asd_policy.formats.encoder_weights import encoder_options, robomimic_encoder, same_options
from asd_policy.formats.native import Checkpoint
from asd_policy.formats.weights import Tensors, affine, filled, part, shape, unet_options, values
from asd_policy.policies.normalizer import Normalizer
from asd_policy.policies.rotation import ARM_6D, ARM_VECTOR
from asd_policy.policies.schedulers import chain_and_parametrization
from asd_policy.policies.spec import ObservationKey, PolicySpec
from asd_policy.sampling.chain import Posterior

# Entries that robosuite gives for each arm; the rest of a frame is ``object``'s.
_KNOWN_SIZES = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}


def recognises(content: Any) -> bool:
    """Whether a file's content is such a checkpoint."""
    return isinstance(content, Mapping) and {"cfg", "state_dicts"} <= set(content)


def read(content: Mapping[str, Any], where: str, posterior: Posterior = "ratio") -> Checkpoint:
    """The checkpoint of a file's content.

    Args:
        content: What ``TorchFile`` gives.
        where: The file, for messages.
        posterior: As in ``GaussianChain.ddpm``; the published evaluations ran with ``table``.

    Raises:
        CheckpointError: If the policy is one that is not supported, or its parts do not fit.
    """
    if not isinstance(content["cfg"], Mapping) or not isinstance(content["state_dicts"], Mapping):
        raise CheckpointError(f"{where}: cfg and state_dicts: expected dictionaries")
    config = Config(content["cfg"], where)
    ema = bool(config.get("training.use_ema", False))
    name = "ema_model" if ema else "model"
    tensors = content["state_dicts"].get(name)
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{where}: state_dicts has no {name}")
    target = str(config.get("policy._target_", "")).rsplit(".", 1)[-1]
    if target not in _POLICIES:
        raise CheckpointError(
            f"{where}: a {target or 'policy without a name'}; supported are {sorted(_POLICIES)}"
        )
    frames = config.integer("n_obs_steps")
    chunk = config.integer("horizon")
    action_horizon = config.integer("n_action_steps") + int(config.get("n_latency_steps", 0))
    first = frames - 1
    if target == "DiffusionTransformerLowdimPolicy":
        network = _transformer(config, tensors)
    else:
        if not config.get("policy.obs_as_global_cond", False):
            raise CheckpointError(
                f"{where}: observations that are inpainted or a local condition; only global "
                "conditions are run"
            )
        groups = config.get("policy.model.n_groups", config.get("policy.n_groups", 8))
        network = unet_options(part(tensors, "model."), groups, where)
    if target == "DiffusionUnetLowdimPolicy" and not config.get("policy.oa_step_convention", False):
        first = frames
    if config.get("policy.pred_action_steps_only", False):
        first, chunk = 0, action_horizon
    weights: dict[str, Any] = dict(_network_tensors(tensors))
    encoder = None
    if target in _IMAGES:
        observations = _shape_meta(config)
        encoder, encoders = _IMAGES[target](config, tensors, observations)
        weights = {f"network.{name}": tensor for name, tensor in weights.items()} | encoders
    else:
        observations = list(_observations(config, _observed(tensors, network, frames, where)))
    options = config.get("policy.noise_scheduler", {})
    if not isinstance(options, Mapping):
        raise CheckpointError(f"{where}: cfg.policy.noise_scheduler: expected a dictionary")
    kind, steps = (
        str(options.get("_target_", "DDPMScheduler")),
        config.get("policy.num_inference_steps"),
    )
    chain, parametrization = chain_and_parametrization(kind, options, steps, posterior, where)
    planned = shape(tensors, "normalizer.params_dict.action.scale", where)[0]
    absolute = bool(config.get("task.abs_action", False)) and planned % ARM_6D == 0
    spec = PolicySpec(
        task=str(config.get("task.task_name") or config.get("task_name", "unknown")),
        observations=tuple(observations),
        action_dim=planned // ARM_6D * ARM_VECTOR if absolute else planned,
        action_mode="absolute" if absolute else _action_mode(config),
        action_rotation="rotation_6d" if absolute else None,
        obs_horizon=frames,
        pred_horizon=chunk,
        action_horizon=action_horizon,
        first_action=first,
        network=network,
        encoder=encoder,
        chain=chain,
        parametrization=parametrization,
    )
    notes = {"format": "diffusion_policy", "policy": target, "weights": name}
    normalizers = _normalizers(tensors, spec, where)
    return Checkpoint(spec, filled(spec, weights, where), normalizers, notes)


def _transformer(config: Config, tensors: Tensors) -> dict[str, Any]:
    where = config.where
    expected = {"causal_attn": True, "time_as_cond": True, "obs_as_cond": True, "n_cond_layers": 0}
    defaults = {"causal_attn": False, "time_as_cond": True, "obs_as_cond": False}
    for name, value in expected.items():
        found = config.get(f"policy.model.{name}", defaults.get(name, 0))
        if found != value:
            raise CheckpointError(
                f"{where}: a transformer with {name} {found}; only {value} is run"
            )
    layers = [
        int(m[1]) for n in tensors if (m := re.match(r"model\.decoder\.layers\.(\d{1,3})\.", n))
    ]
    return {
        "name": "chi_transformer",
        "n_layer": 1 + max(layers, default=-1),
        "n_head": config.integer("policy.model.n_head"),
        "n_emb": shape(tensors, "model.pos_emb", where)[-1],
        "p_drop_emb": float(config.get("policy.model.p_drop_emb", 0.0)),
        "p_drop_attn": float(config.get("policy.model.p_drop_attn", 0.0)),
    }


def _network_tensors(tensors: Tensors) -> Tensors:
    constant = ("_dummy_variable", "mask", "memory_mask")
    return {n: t for n, t in part(tensors, "model.").items() if n not in constant}


def _observed(tensors: Tensors, network: Mapping[str, Any], frames: int, where: str) -> int:
    """How many values of a frame the network sees."""
    if network["name"] == "chi_transformer":
        return shape(tensors, "model.cond_obs_emb.weight", where)[1]
    film = shape(tensors, "model.down_modules.0.0.cond_encoder.1.weight", where)[1]
    seen = film - network["diffusion_step_embed_dim"]
    if seen <= 0 or seen % frames:
        raise CheckpointError(f"{where}: {seen} values of condition for {frames} frames")
    return seen // frames


def _observations(config: Config, seen: int) -> tuple[ObservationKey, ...]:
    """The entries of a frame: named keys with the sizes robosuite gives them, or all as ``obs``."""
    keys = config.get("task.obs_keys")
    if not isinstance(keys, list):
        return (ObservationKey("obs", (seen,)),)
    sizes = {
        key: next((n for end, n in _KNOWN_SIZES.items() if str(key).endswith(end)), None)
        for key in keys
    }
    unknown = [key for key, size in sizes.items() if size is None]
    rest = seen - sum(size for size in sizes.values() if size is not None)
    if len(unknown) > 1 or (rest > 0) != bool(unknown) or rest < 0:
        raise CheckpointError(
            f"{config.where}: observations {keys} of {seen} values: the file does not say which "
            f"have how many, and the sizes of {unknown or 'all'} are not known here"
        )
    return tuple(
        ObservationKey(str(key), (rest if size is None else size,)) for key, size in sizes.items()
    )


def _action_mode(config: Config) -> str:
    if "robomimic" in str(config.get("task.env_runner._target_", "")):
        return "delta"
    return "position" if "pusht" in str(config.get("task.name", "")) else "unknown"


def _shape_meta(config: Config) -> list[ObservationKey]:
    """The entries of a frame with images, in the order of ``shape_meta``."""
    entries = config.get("shape_meta.obs", config.get("task.shape_meta.obs"))
    if not isinstance(entries, Mapping):
        raise CheckpointError(f"{config.where}: cfg.shape_meta.obs: expected a dictionary")
    found = []
    for key, entry in entries.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("shape"), list):
            raise CheckpointError(f"{config.where}: cfg.shape_meta.obs.{key}: expected a shape")
        found.append(ObservationKey(key, tuple(entry["shape"]), image=entry.get("type") == "rgb"))
    return found


def _robomimic_encoders(
    config: Config, tensors: Tensors, observations: list[ObservationKey]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and tensors of a hybrid policy's encoders, one for each camera."""
    where = config.where
    if not config.get("policy.obs_encoder_group_norm", False):
        raise CheckpointError(f"{where}: obs_encoder_group_norm is off; only GroupNorm is run")
    crop = config.get("policy.crop_shape")
    if crop is not None and not config.get("policy.eval_fixed_crop", False):
        raise CheckpointError(
            f"{where}: eval_fixed_crop is off: its crops are random in evaluation"
        )
    kinds: list[dict[str, Any]] = []
    weights: dict[str, Any] = {}
    cameras = [entry.key for entry in observations if entry.image]
    for number, camera in enumerate(cameras):
        own = part(tensors, f"obs_encoder.obs_nets.{camera}.")
        options, ours = robomimic_encoder(own, where)
        options["temperature"] = float(values(own["pool.temperature"]).item())
        kinds.append(options | {"crop": crop})
        weights |= {f"encoders.{number}.{name}": tensor for name, tensor in ours.items()}
    return {"shared": False, **same_options(kinds, where)}, weights


def _own_encoders(
    config: Config, tensors: Tensors, observations: list[ObservationKey]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of the project's ``MultiImageObsEncoder``, which sorts images before the rest."""
    where = config.where
    observations.sort(key=lambda entry: (not entry.image, entry.key))
    prefix = "policy.obs_encoder."
    shared = bool(config.get(prefix + "share_rgb_model", False))
    resize, crop = config.get(prefix + "resize_shape"), config.get(prefix + "crop_shape")
    if isinstance(resize, Mapping) or isinstance(crop, Mapping):
        raise CheckpointError(f"{where}: resize_shape and crop_shape of each camera's own")
    if not config.get(prefix + "random_crop", True):
        crop = None  # the project's code loses the centre crop that it makes in this case
    cameras = ["rgb"] if shared else [entry.key for entry in observations if entry.image]
    kinds: list[dict[str, Any]] = []
    weights: dict[str, Any] = {}
    for number, camera in enumerate(cameras):
        own = part(tensors, f"obs_encoder.key_model_map.{camera}.")
        ours = {f"backbone.{name}": tensor for name, tensor in own.items()}
        kinds.append(encoder_options(ours, where))
        weights |= {f"encoders.{number}.{name}": tensor for name, tensor in ours.items()}
    return {
        "shared": shared,
        **same_options(kinds, where),
        "resize": resize,
        "crop": crop,
        "imagenet_norm": bool(config.get(prefix + "imagenet_norm", False)),
    }, weights


_IMAGES = {
    "DiffusionUnetHybridImagePolicy": _robomimic_encoders,
    "DiffusionUnetImagePolicy": _own_encoders,
}
_POLICIES = {"DiffusionUnetLowdimPolicy", "DiffusionTransformerLowdimPolicy", *_IMAGES}


def _normalizers(tensors: Tensors, spec: PolicySpec, where: str) -> dict[str, Normalizer]:
    def read_one(key: str, size: int) -> Normalizer:
        prefix = f"normalizer.params_dict.{key}."
        for field in ("scale", "offset"):
            shape(tensors, prefix + field, where)
        scale, offset = (values(tensors[prefix + field]) for field in ("scale", "offset"))
        return affine(scale, offset, size, key, where)

    normalizers = {"action": read_one("action", spec.planned_dim)}
    if spec.encoder is not None:
        return normalizers | {e.key: read_one(e.key, e.scales) for e in spec.observations}
    # Low-dimensional policies see one vector.
    whole, start = read_one("obs", spec.observation_dim), 0
    for entry in spec.observations:
        stop = start + entry.size
        normalizers[entry.key] = Normalizer(whole.scale[start:stop], whole.offset[start:stop])
        start = stop
    return normalizers
