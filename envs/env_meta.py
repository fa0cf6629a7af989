"""Environments as robomimic's files describe them (`env_args`), on today's robosuite.

Files come from robosuite 1.2 to 1.5, which name and mean the controller's options differently. What
today's simulator cannot do as the file says is an error, never dropped.
"""

from collections.abc import Mapping
from typing import Any

from envs.errors import EnvMetaError
from envs.registry import make
from envs.robomimic import RobomimicEnv
from envs.robosuite_setup import CONTROL_HZ, TASKS

_RENAMED = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}
"""Options of a controller up to robosuite 1.4, by their names since."""
_CONTROLLER = {
    "type",
    "input_max",
    "input_min",
    "output_max",
    "output_min",
    "kp",
    "damping_ratio",
    "impedance_mode",
    "kp_limits",
    "damping_ratio_limits",
    "position_limits",
    "orientation_limits",
    "uncouple_pos_ori",
    "input_type",
    "input_ref_frame",
    "interpolation",
    "ramp_ratio",
    "gripper",
}
_FIXED: dict[str, Any] = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "impedance_mode": "fixed",
    "interpolation": None,
    "position_limits": None,
    "orientation_limits": None,
    "gripper": {"type": "GRIP"},
}
"""Options of a controller that have one value here: others change what an action is, or fail."""
_NUMBERS = {
    "kp": (1, 6),
    "damping_ratio": (1, 6),
    "kp_limits": (2,),
    "damping_ratio_limits": (2,),
    "output_max": (1, 6),
    "output_min": (1, 6),
    "ramp_ratio": (1,),
}
"""Options of a controller that are numbers, and how many there may be."""
_OF_NO_ACCOUNT = {
    "has_renderer",
    "has_offscreen_renderer",
    "use_camera_obs",
    "camera_names",
    "camera_heights",
    "camera_widths",
    "camera_depths",
    "camera_segmentations",
    "render_camera",
    "render_collision_mesh",
    "render_visual_mesh",
    "render_gpu_device_id",
    "renderer",
    "renderer_config",
    "ignore_done",
    "horizon",
    "hard_reset",
}
"""Arguments of the environment that are for looking, or for when episodes end."""
_PASSED_ON = {"lite_physics"}
_CONFIGURATIONS = {"single-arm-opposed": "opposed"}
"""How two robots stand, by the names up to robosuite 1.4."""


def make_from_meta(
    meta: Mapping[str, Any], render_mode: str | None = None, **kwargs: Any
) -> RobomimicEnv:
    """Make the environment that a robomimic file describes.

    Args:
        meta: The file's `env_args` or `env_metadata`.
        render_mode: As in `envs.make`.
        **kwargs: Options of `RobomimicEnv`.

    Raises:
        EnvMetaError: If it describes what cannot be made here, naming it.
    """
    task, arguments = _read(meta)
    controller = arguments["controller_configs"]
    first = controller[0] if isinstance(controller, list) else controller
    env = make(
        task,
        render_mode,
        action_mode=first["body_parts"]["right"]["input_type"],
        robosuite_arguments=arguments,
        **kwargs,
    )
    assert isinstance(env, RobomimicEnv)
    return env


def _read(meta: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The task's name, and the arguments of `robosuite.make` that are not the usual ones."""
    _expect_mapping("the environment's description", meta)
    if meta.get("type") not in (None, 1):
        raise EnvMetaError(f"expected an environment of robosuite (type 1), got {meta['type']!r}")
    tasks = {row.env_name: name for name, row in TASKS.items()}
    if meta.get("env_name") not in tasks:
        raise EnvMetaError(f"unknown env_name {meta.get('env_name')!r}: expected {sorted(tasks)}")
    name = tasks[meta["env_name"]]
    _expect_mapping(f"{name}: env_kwargs", meta.get("env_kwargs"))
    row, given = TASKS[name], dict(meta["env_kwargs"])
    version = _version(meta.get("env_version", "1.4"))
    controllers = given.pop("controller_configs", None)
    if controllers is None:
        raise EnvMetaError(f"{name}: no controller_configs in env_kwargs")
    robots = given.pop("robots", list(row.robots))
    _expect(name, "robots", [robots] if isinstance(robots, str) else list(robots), list(row.robots))
    standing = given.pop("env_configuration", row.env_configuration or "default")
    standing = _CONFIGURATIONS.get(standing, standing)
    _expect(name, "env_configuration", standing, row.env_configuration or "default")
    for key, value in (
        ("control_freq", CONTROL_HZ),
        ("use_object_obs", True),
        ("reward_shaping", False),
        ("gripper_types", "default"),
        ("initialization_noise", "default"),
        ("env_lang", None),
    ):
        _expect(name, key, given.pop(key, value), value)
    unknown = sorted(set(given) - _OF_NO_ACCOUNT - _PASSED_ON)
    if unknown:
        raise EnvMetaError(f"{name}: arguments {unknown} cannot be expressed here")
    several = list(controllers) if isinstance(controllers, (list, tuple)) else [controllers]
    # One configuration was for all arms.
    several = several * len(row.robots) if len(several) == 1 else several
    if len(several) != len(row.robots):
        raise EnvMetaError(f"{name}: expected {len(row.robots)} controllers, got {len(several)}")
    converted = [_controller(name, config, version) for config in several]
    types = [config["body_parts"]["right"]["input_type"] for config in converted]
    _expect(name, "input_type of every arm", types, types[:1] * len(types))
    arguments = {key: given[key] for key in _PASSED_ON & set(given)}
    arguments["controller_configs"] = converted if len(converted) > 1 else converted[0]
    return name, arguments


def _version(text: Any) -> tuple[int, ...]:
    """Robosuite's version as numbers, of which two are looked at."""
    try:
        return tuple(int(part) for part in str(text).split(".")[:2])
    except ValueError:
        raise EnvMetaError(f"env_version: expected one such as '1.4.1', got {text!r}") from None


def _controller(task: str, config: Mapping[str, Any], version: tuple[int, ...]) -> dict[str, Any]:
    """One arm's controller in robosuite 1.5's form."""
    _expect_mapping(f"{task}: a controller's options", config)
    old = "body_parts" not in config
    given = dict(config) if old else _arm(task, config)
    part: dict[str, Any] = {}
    for key, value in given.items():
        name = _RENAMED.get(key, key)
        _expect(task, f"controller options {key} and {name}", value, part.setdefault(name, value))
    if "control_delta" in part:
        said = "delta" if part.pop("control_delta") else "absolute"
        # Robosuite 1.5 ignores the option, so that a file of its own would mean deltas.
        meant = part.get("input_type", said if version < (1, 5) else "delta")
        if said != meant:
            raise EnvMetaError(
                f"{task}: controller options control_delta={said == 'delta'} and input_type="
                f"{part.get('input_type', 'delta, which robosuite 1.5 takes where none is given')}"
                " contradict each other; give input_type alone, as the actions were meant"
            )
        part["input_type"] = said
    # Up to 1.4 there was one frame, the world's; 1.5 reads its own default as the base's.
    part.setdefault("input_type", "delta")
    part.setdefault("input_ref_frame", "world" if old and version < (1, 5) else "base")
    part.setdefault("gripper", {"type": "GRIP"})
    unknown = sorted(set(part) - _CONTROLLER)
    if unknown:
        raise EnvMetaError(f"{task}: controller options {unknown} cannot be expressed here")
    for key, value in _FIXED.items():
        found = part.setdefault(key, value)
        if key in ("input_max", "input_min") and isinstance(found, (list, tuple)):
            found = value if set(found) == {value} else found  # one for all, or one for each
        _expect(task, f"controller option {key}", found, value)
    for key, values in (
        ("input_type", ("delta", "absolute")),
        ("input_ref_frame", ("world", "base")),
    ):
        if part[key] not in values:
            raise EnvMetaError(
                f"{task}: controller option {key}: expected one of {values}, got {part[key]!r}"
            )
    for key in _NUMBERS.keys() & part.keys():
        _expect_numbers(f"{task}: controller option {key}", part[key], _NUMBERS[key])
    return {"type": "BASIC", "body_parts": {"right": part}}


def _arm(task: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arm's part of a composite controller, which must have no other."""
    _expect(task, "controller type", config.get("type"), "BASIC")
    unknown = sorted(set(config) - {"type", "body_parts"})
    if unknown:
        raise EnvMetaError(f"{task}: options {unknown} of the controller cannot be expressed here")
    _expect_mapping(f"{task}: body_parts", config["body_parts"])
    parts = dict(config["body_parts"])
    arms = dict(parts.pop("arms", {})) | parts
    if set(arms) != {"right"}:
        raise EnvMetaError(
            f"{task}: expected a controller of the right arm alone, got {sorted(arms)}"
        )
    return dict(arms["right"])


def _expect_mapping(what: str, found: Any) -> None:
    if not isinstance(found, Mapping):
        raise EnvMetaError(
            f"{what}: expected names and values (of text, what json.loads makes of it), "
            f"got {found!r}"
        )


def _expect_numbers(what: str, found: Any, sizes: tuple[int, ...]) -> None:
    values = found if isinstance(found, (list, tuple)) else [found]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) != len(values) or len(values) not in sizes:
        several = " or ".join(map(str, sizes))
        raise EnvMetaError(f"{what}: expected numbers ({several}), got {found!r}")


def _expect(task: str, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise EnvMetaError(f"{task}: {what}: expected {expected!r}, got {found!r}")
