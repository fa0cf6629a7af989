"""Importing robosuite quietly, and the arguments that make it behave as Robomimic's datasets do."""

import logging
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from envs.specs import ActionMode

CONTROL_HZ = 20


@dataclass(frozen=True)
class RobosuiteTask:
    """The row of one Robomimic task.

    Attributes:
        env_name: robosuite's name of the environment.
        robots: One robot an arm.
        camera: The camera that `render()` looks through unless told otherwise.
        env_configuration: How two robots stand, or None.
    """

    env_name: str
    robots: tuple[str, ...]
    camera: str
    env_configuration: str | None = None


TASKS: dict[str, RobosuiteTask] = {
    "lift": RobosuiteTask(env_name="Lift", robots=("Panda",), camera="agentview"),
    "can": RobosuiteTask(env_name="PickPlaceCan", robots=("Panda",), camera="agentview"),
    "square": RobosuiteTask(env_name="NutAssemblySquare", robots=("Panda",), camera="agentview"),
    "transport": RobosuiteTask(
        env_name="TwoArmTransport",
        robots=("Panda", "Panda"),
        camera="agentview",
        env_configuration="opposed",
    ),
    "tool_hang": RobosuiteTask(env_name="ToolHang", robots=("Panda",), camera="sideview"),
}


def import_robosuite() -> ModuleType:
    """Import robosuite without its warnings, and leave the process's GL settings as they were.

    On import robosuite logs advice on optional packages and sets `MUJOCO_GL`, a choice of OpenGL
    platform that other simulators then read. Neither is wanted: we never use its renderer.
    """
    logger = logging.getLogger("robosuite_logs")
    if _is_error not in logger.filters:
        logger.addFilter(_is_error)
    before = os.environ.get("MUJOCO_GL")
    import robosuite

    if before is None:
        os.environ.pop("MUJOCO_GL", None)
    else:
        os.environ["MUJOCO_GL"] = before
    return robosuite


def env_kwargs(row: RobosuiteTask, action_mode: ActionMode = "delta") -> dict[str, Any]:
    """Return the arguments of `robosuite.make` for a task, JSON-serialisable.

    Rewards are sparse, and robosuite's own horizon is off: the gymnasium environment ends episodes.
    """
    controllers = [_controller(action_mode) for _ in row.robots]
    configuration = (
        {} if row.env_configuration is None else {"env_configuration": row.env_configuration}
    )
    return {
        **configuration,
        "robots": list(row.robots),
        "controller_configs": controllers if len(controllers) > 1 else controllers[0],
        "control_freq": CONTROL_HZ,
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "use_camera_obs": False,
        "use_object_obs": True,
        "reward_shaping": False,
        "ignore_done": True,
        "hard_reset": True,
        "lite_physics": True,
        "renderer": "mujoco",
    }


def _controller(action_mode: ActionMode) -> dict[str, Any]:
    """Return one arm's controller: OSC_POSE, pose deltas or poses in the world frame.

    The actions of Robomimic's datasets are deltas in the world frame; robosuite 1.5 would read
    them in the robot's base frame unless told.
    """
    return {
        "type": "BASIC",
        "body_parts": {
            "right": {
                "type": "OSC_POSE",
                "input_max": 1,
                "input_min": -1,
                "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
                "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
                "kp": 150,
                "damping_ratio": 1,
                "impedance_mode": "fixed",
                "kp_limits": [0, 300],
                "damping_ratio_limits": [0, 10],
                "position_limits": None,
                "orientation_limits": None,
                "uncouple_pos_ori": True,
                "input_type": action_mode,
                "input_ref_frame": "world",
                "interpolation": None,
                "ramp_ratio": 0.2,
                "gripper": {"type": "GRIP"},
            }
        },
    }


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
