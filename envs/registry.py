"""The table of tasks, and making one by name."""

import importlib
from typing import Any

import gymnasium

from envs.errors import ActionError, UnknownTaskError
from envs.specs import TaskSpec


def _robomimic(
    name: str, title: str, *, object_dim: int, arms: int, steps: int, success: str
) -> TaskSpec:
    """Return the spec of a Robomimic task: object state first, then each arm's proprioception."""
    observations: list[tuple[str, tuple[int, ...]]] = [("object", (object_dim,))]
    for arm in range(arms):
        observations += [
            (f"robot{arm}_eef_pos", (3,)),
            (f"robot{arm}_eef_quat", (4,)),
            (f"robot{arm}_gripper_qpos", (2,)),
        ]
    return TaskSpec(
        name=name,
        title=title,
        observations=tuple(observations),
        action_modes=("delta", "absolute"),
        action_dim=7 * arms,
        action_low=-1.0,
        action_high=1.0,
        control_hz=20,
        max_episode_steps=steps,
        metric="success",
        success=success,
        entry_point="envs.robomimic:RobomimicEnv",
    )


_TASKS: dict[str, TaskSpec] = {
    task.name: task
    for task in (
        TaskSpec(
            name="pusht",
            title="Push-T",
            observations=(("keypoint", (9, 2)), ("agent_pos", (2,))),
            action_modes=("position",),
            action_dim=2,
            action_low=0.0,
            action_high=512.0,
            control_hz=10,
            max_episode_steps=300,
            metric="reward",
            success="more than 95 % of the goal area is covered by the block",
            entry_point="envs.pusht:PushTEnv",
        ),
        _robomimic(
            "lift",
            "Lift",
            object_dim=10,
            arms=1,
            steps=400,
            success="the cube's centre is more than 4 cm above the table top",
        ),
        _robomimic(
            "can",
            "Can",
            object_dim=14,
            arms=1,
            steps=400,
            success="the can stands in its compartment of the right bin, and the hand is away",
        ),
        _robomimic(
            "square",
            "Square",
            object_dim=14,
            arms=1,
            steps=400,
            success="the square nut is around the square peg, and the hand is away",
        ),
        _robomimic(
            "transport",
            "Transport",
            object_dim=41,
            arms=2,
            steps=700,
            success="the hammer is in the target bin and the cube in the other",
        ),
        _robomimic(
            "tool_hang",
            "Tool Hang",
            object_dim=44,
            arms=1,
            steps=700,
            success="the frame stands in its base and the tool hangs on the frame",
        ),
    )
}


def names() -> tuple[str, ...]:
    """Return the names of all tasks, in alphabetical order."""
    return tuple(sorted(_TASKS))


def spec(name: str) -> TaskSpec:
    """Return a task's spec, without importing its simulator.

    Args:
        name: One of `names()`.

    Raises:
        UnknownTaskError: If there is no such task.
    """
    try:
        return _TASKS[name]
    except KeyError:
        raise UnknownTaskError(
            f"unknown task {name!r}; known tasks: {', '.join(names())}"
        ) from None


def make(
    name: str,
    render_mode: str | None = None,
    *,
    action_mode: str | None = None,
    **kwargs: Any,
) -> gymnasium.Env:
    """Make a task's environment; this is when its simulator is imported.

    Args:
        name: One of `names()`.
        render_mode: None, or "rgb_array" for an environment whose `render()` returns frames.
        action_mode: One of the task's action modes; None for the usual one.
        **kwargs: Options of the task's environment class (see `spec(name).entry_point`).

    Returns:
        A gymnasium environment with observations and actions as `spec(name)` says.

    Raises:
        UnknownTaskError: If there is no such task.
        ActionError: If the task has no such action mode.
    """
    task = spec(name)
    action_mode = action_mode or task.action_modes[0]
    if action_mode not in task.action_modes:
        raise ActionError(
            f"{name}: unknown action mode {action_mode!r}; expected one of "
            f"{', '.join(task.action_modes)}"
        )
    if action_mode != task.action_modes[0]:
        kwargs["action_mode"] = action_mode
    module, _, attribute = task.entry_point.partition(":")
    env: gymnasium.Env = getattr(importlib.import_module(module), attribute)(
        task, render_mode=render_mode, **kwargs
    )
    return env
