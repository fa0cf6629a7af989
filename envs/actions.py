"""The check that every action passes before it reaches a simulator."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.errors import ActionError
from envs.specs import TaskSpec


def check_action(
    action: ArrayLike, task: TaskSpec, low: ArrayLike, high: ArrayLike
) -> NDArray[np.float64]:
    """Return an action as float64, clipped to its bounds.

    Args:
        action: (action_dim,) real numbers.
        task: The task's spec.
        low: Lower bounds, of one component or of each.
        high: Upper bounds.

    Raises:
        ActionError: If the action is not numeric, has another shape, or is not finite.
    """
    try:
        command = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ActionError(
            f"{task.name}: an action must be {task.action_dim} numbers, got {type(action).__name__}"
        ) from error
    if command.shape != (task.action_dim,):
        raise ActionError(
            f"{task.name}: an action must have shape ({task.action_dim},), got {command.shape}; "
            "pass one step's action, not a chunk or a batch"
        )
    if not np.isfinite(command).all():
        bad = np.flatnonzero(~np.isfinite(command)).tolist()
        raise ActionError(
            f"{task.name}: an action must be finite, but components {bad} are not: {command}; "
            "look for a diverged policy or a missing normaliser"
        )
    return np.clip(command, low, high)
