"""Scripted demonstrators: they see the simulator's state and solve a task as a person might.

A demonstrator lives for one episode. It is made after `env.reset`, draws its style (path, speeds,
grasp) from the generator it is given, and then answers `act()` once per control step.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.demonstrators.can import CanDemonstrator
from envs.demonstrators.lift import LiftDemonstrator
from envs.demonstrators.square import SquareDemonstrator
from envs.demonstrators.tool_hang import ToolHangDemonstrator
from envs.demonstrators.transport import TransportDemonstrator
from envs.errors import UnknownTaskError
from envs.robomimic import RobomimicEnv

_DEMONSTRATORS: dict[str, Callable[[RobomimicEnv, np.random.Generator], "Demonstrator"]] = {
    "can": CanDemonstrator,
    "lift": LiftDemonstrator,
    "square": SquareDemonstrator,
    "tool_hang": ToolHangDemonstrator,
    "transport": TransportDemonstrator,
}


class Demonstrator(Protocol):
    """What plays an episode.

    Attributes:
        style: How it goes about it this time: a dataclass of numbers and arrays.
    """

    style: Any

    def act(self) -> NDArray[np.float32]:
        """Return the action (action_dim,) for the simulator's present state."""
        ...


def names() -> tuple[str, ...]:
    """Return the names of the tasks that have a demonstrator."""
    return tuple(sorted(_DEMONSTRATORS))


def make(env: RobomimicEnv, rng: np.random.Generator) -> Demonstrator:
    """Make the demonstrator of one episode.

    Args:
        env: The environment, just reset.
        rng: Where the episode's style and tremor come from.

    Raises:
        UnknownTaskError: If the task has no demonstrator.
    """
    if env.task.name not in _DEMONSTRATORS:
        raise UnknownTaskError(
            f"no demonstrator for task {env.task.name!r}; there are some for: {', '.join(names())}"
        )
    return _DEMONSTRATORS[env.task.name](env, rng)
