"""What is known of a task without building it: names, shapes, limits, what counts as success."""

from dataclasses import dataclass
from typing import Literal

Metric = Literal["reward", "success"]
ActionMode = Literal["position", "delta", "absolute"]


@dataclass(frozen=True)
class TaskSpec:
    """The contract of one task.

    Attributes:
        name: Short name, as in `envs.make(name)`.
        title: Name for people, as used in papers.
        observations: Pairs (key, shape) in the order in which policies concatenate them; float32.
        action_modes: What an action can mean, the usual one first: "position", where to be;
            "delta", a step of the end effector from where it is; "absolute", its pose in the world.
        action_dim: Length of an action, in every mode.
        action_low: Lower bound of every action component in the usual mode.
        action_high: Upper bound of every action component in the usual mode.
        control_hz: Control steps per simulated second.
        max_episode_steps: Control steps after which an episode is truncated.
        metric: What is averaged over episodes: "reward", the largest reward of an episode, in
            [0, 1], or "success", whether it succeeded.
        success: When an episode counts as a success, in words.
        entry_point: "module:class" of the environment, imported when it is first made.
    """

    name: str
    title: str
    observations: tuple[tuple[str, tuple[int, ...]], ...]
    action_modes: tuple[ActionMode, ...]
    action_dim: int
    action_low: float
    action_high: float
    control_hz: int
    max_episode_steps: int
    metric: Metric
    success: str
    entry_point: str

    @property
    def observation_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by observation key, in order."""
        return dict(self.observations)
