"""Environments as robomimic's files describe them (`env_args`), on today's robosuite.

Files come from robosuite 1.2 to 1.5, which name and mean the controller's options differently. What
today's simulator cannot do as the file says is an error, never dropped.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

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
    "position_limits",
    "orientation_limits",
    "uncouple_pos_ori",
    "input_type",
    "input_ref_frame",
    "interpolation",
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
_NUMBERS = ("kp", "damping_ratio", "output_max", "output_min")
"""Options of a controller that are numbers: one for all of a hand's six directions, or six."""
_POSITIVE = ("kp", "damping_ratio")
_UNREAD = ("kp_limits", "damping_ratio_limits", "ramp_ratio")
"""Options of gains that change and of interpolated goals: of neither, with what `_FIXED` says."""
_ABSENT = {"left", "torso", "head", "base", "legs"}
"""Parts of other robots in a composite controller: robosuite passes over what a Panda lacks."""
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
"""Arguments of the environment that are for looking, or for when episodes begin and end, which is
for the gymnasium environment to say: every `reset` of it builds the model anew."""


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
    meta = _plain(meta)
    if meta.get("type") not in (None, 1):
        raise EnvMetaError(f"expected an environment of robosuite (type 1), got {meta['type']!r}")
    tasks = {row.env_name: name for name, row in TASKS.items()}
    env_name = meta.get("env_name")
    if not isinstance(env_name, str) or env_name not in tasks:
        raise EnvMetaError(f"unknown env_name {env_name!r}: expected {sorted(tasks)}")
    name = tasks[env_name]
    _expect_mapping(f"{name}: env_kwargs", meta.get("env_kwargs"))
    row, given = TASKS[name], dict(meta["env_kwargs"])
    version = _version(meta.get("env_version", "1.4"))
    controllers = given.pop("controller_configs", None)
    if controllers is None:
        raise EnvMetaError(f"{name}: no controller_configs in env_kwargs")
    robots = given.pop("robots", list(row.robots))
    robots = [robots] if isinstance(robots, str) else robots
    _expect(name, "robots", robots, list(row.robots))
    standing = given.pop("env_configuration", row.env_configuration or "default")
    if standing == "single-arm-opposed":  # up to robosuite 1.4
        standing = "opposed"
    _expect(name, "env_configuration", standing, row.env_configuration or "default")
    given.pop("env_lang", None)  # what the task is in words, for policies that read
    for key, value in (
        ("env_name", row.env_name),  # robomimic repeats it here once it has made the environment
        ("control_freq", CONTROL_HZ),
        ("use_object_obs", True),
        ("reward_shaping", False),
        ("gripper_types", "default"),
        ("initialization_noise", "default"),
    ):
        _expect(name, key, given.pop(key, value), value)
    passed_on = {key: given.pop(key) for key in ("lite_physics",) if key in given}
    for key, value in passed_on.items():
        _expect_boolean(f"{name}: {key}", value)
    unknown = sorted(set(given) - _OF_NO_ACCOUNT)
    if unknown:
        raise EnvMetaError(f"{name}: arguments {unknown} cannot be expressed here")
    several = controllers if isinstance(controllers, list) else [controllers]
    # One configuration was for all arms.
    several = several * len(row.robots) if len(several) == 1 else several
    if len(several) != len(row.robots):
        raise EnvMetaError(f"{name}: expected {len(row.robots)} controllers, got {len(several)}")
    converted = [_controller(name, config, version) for config in several]
    types = [config["body_parts"]["right"]["input_type"] for config in converted]
    _expect(name, "input_type of every arm", types, types[:1] * len(types))
    return name, passed_on | {
        "controller_configs": converted if len(converted) > 1 else converted[0]
    }


def _plain(meta: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as json has it: lists for tuples and arrays."""
    _expect_mapping("the environment's description", meta)
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(meta), default=_from_numpy))
    except (TypeError, ValueError) as error:
        raise EnvMetaError(f"the environment's description: {error}; expected JSON") from None
    return copied


def _from_numpy(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"got a {type(value).__name__}")


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
    part = _renamed(task, given, version)
    if "control_delta" in part:
        _expect_boolean(f"{task}: controller option control_delta", part["control_delta"])
        said = "delta" if part.pop("control_delta") else "absolute"
        # Robosuite 1.5 ignores the option, so that a file of its own would mean deltas.
        meant = part.get("input_type", said if version < (1, 5) else "delta")
        if said != meant:
            raise EnvMetaError(
                f"{task}: controller options control_delta={said == 'delta'} and input_type="
                f"{part.get('input_type', 'delta, which robosuite 1.5 takes where none is given')}"
                f" contradict each other; {_SAY}"
            )
        part["input_type"] = said
    # Up to 1.4 there was one frame, the world's; 1.5 reads its own default as the base's.
    part.setdefault("input_type", "delta")
    part.setdefault("input_ref_frame", "world" if old and version < (1, 5) else "base")
    part.setdefault("gripper", {"type": "GRIP"})
    unknown = sorted(set(part) - _CONTROLLER)
    if unknown:
        raise EnvMetaError(f"{task}: controller options {unknown} cannot be expressed here")
    if "type" not in part:
        raise EnvMetaError(f"{task}: controller option type: expected 'OSC_POSE', got none")
    for key, value in _FIXED.items():
        found = part.setdefault(key, value)
        if key in ("input_max", "input_min") and found == [value] * 6:
            continue  # one for each direction
        _expect(task, f"controller option {key}", found, value)
    for key, values in (
        ("input_type", ("delta", "absolute")),
        ("input_ref_frame", ("world", "base")),
    ):
        if part[key] not in values:
            raise EnvMetaError(
                f"{task}: controller option {key}: expected one of {values}, got {part[key]!r}"
            )
    for key in _NUMBERS:
        if key in part:
            _expect_numbers(f"{task}: controller option {key}", part[key], key in _POSITIVE)
    _expect_boolean(
        f"{task}: controller option uncouple_pos_ori", part.get("uncouple_pos_ori", True)
    )
    return {"type": "BASIC", "body_parts": {"right": part}}


_SAY = "give input_type alone, as the actions were meant"


def _renamed(task: str, given: Mapping[str, Any], version: tuple[int, ...]) -> dict[str, Any]:
    """Options of a controller by robosuite 1.5's names."""
    if version < (1, 5):
        part: dict[str, Any] = {}
        for key, value in given.items():
            name = _RENAMED.get(key, key)
            if name in part:
                _expect(task, f"controller options {key} and {name}", value, part[name])
            part[name] = value
    else:
        # Robosuite 1.5 reads the new names alone: what the old ones say must hold without them.
        part = {key: value for key, value in given.items() if key not in _RENAMED}
        applies = part.get("damping_ratio", 1)
        _expect(
            task,
            "controller option damping, which robosuite 1.5 does not read (damping_ratio is)",
            given.get("damping", applies),
            applies,
        )
    return {key: value for key, value in part.items() if key not in _UNREAD}


def _arm(task: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arm's part of a composite controller, which must have no other."""
    _expect(task, "controller type", config.get("type"), "BASIC")
    unknown = sorted(set(config) - {"type", "body_parts"})
    if unknown:
        advice = f"; {_SAY}" if "control_delta" in unknown else ""
        raise EnvMetaError(
            f"{task}: options {unknown} of the controller cannot be expressed here{advice}"
        )
    _expect_mapping(f"{task}: body_parts", config["body_parts"])
    parts = dict(config["body_parts"])
    arms = parts.pop("arms", {})
    _expect_mapping(f"{task}: arms", arms)
    found = dict(arms) | parts
    if "right" not in found or set(found) - {"right"} - _ABSENT:
        raise EnvMetaError(
            f"{task}: expected a controller of the right arm (and of nothing else that a Panda "
            f"has), got {sorted(found)}"
        )
    _expect_mapping(f"{task}: right", found["right"])
    return dict(found["right"])


def _expect_mapping(what: str, found: Any) -> None:
    if not isinstance(found, Mapping):
        raise EnvMetaError(
            f"{what}: expected names and values (of text, what json.loads makes of it), "
            f"got {found!r}"
        )


def _expect_numbers(what: str, found: Any, positive: bool) -> None:
    values = found if isinstance(found, list) else [found] * 6
    if len(values) != 6 or not all(_is_number(value, positive) for value in values):
        kind = "positive number" if positive else "number"
        raise EnvMetaError(f"{what}: expected a {kind}, or six in a list, got {found!r}")


def _is_number(value: Any, positive: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and (value > 0 or not positive)


def _expect_boolean(what: str, found: Any) -> None:
    if not isinstance(found, bool):
        raise EnvMetaError(f"{what}: expected true or false, got {found!r}")


def _expect(task: str, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise EnvMetaError(f"{task}: {what}: expected {expected!r}, got {found!r}")
