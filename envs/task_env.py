"""What the environments of all tasks share: their spaces, their checks, when an episode ends."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.actions import check_action
from envs.errors import EpisodeError, RenderError
from envs.specs import TaskSpec

Observation = dict[str, NDArray[np.float32] | NDArray[np.uint8]]
Limits = NDArray[np.float32]


class TaskEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]], ABC):
    """One task; a simulator's class says how an episode starts, how it goes on and what is seen.

    Args:
        task: The task's spec.
        render_mode: None, or "rgb_array" if `render()` is to be called.
        images: Images to observe besides the task's observations: for each key, height and width;
            uint8 RGB `(height, width, 3)`.
        terminate_on_success: Whether success ends an episode, or the step limit alone.

    Attributes:
        task: The task's spec.
    """

    def __init__(
        self,
        task: TaskSpec,
        render_mode: str | None,
        images: Mapping[str, tuple[int, int]] | None,
        terminate_on_success: bool = True,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise RenderError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.task = task
        self.render_mode = render_mode
        self._images = dict(images or {})
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, shape) for key, shape in task.observations}
            | {k: spaces.Box(0, 255, (*size, 3), np.uint8) for k, size in self._images.items()}
        )
        self._limit_actions(task.action_low, task.action_high)
        self._terminate_on_success = terminate_on_success
        self._steps = 0
        self._started = False
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seed of this episode and of the episode seeds drawn by later calls without one.
            options: Unused.

        Returns:
            The observation, and info: "success" (False), "seed" (reproduces this episode), and what
            the class says besides.
        """
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        observation, info = self._start(episode_seed)
        self._steps = 0
        self._started = self._running = True
        return observation, {"success": False, "seed": episode_seed, **info}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run one control step.

        Args:
            action: (action_dim,) as described at the class.

        Returns:
            Observation, reward, terminated (by success), truncated (by the step limit), and info
            with "success" and what the class says besides.

        Raises:
            ActionError: If the action has the wrong shape or is not finite.
            EpisodeError: Before `reset`, or after the episode has ended.
        """
        command = check_action(action, self.task, *self._limits)
        if not self._running:
            raise EpisodeError(
                f"{self.task.name}: step() needs a running episode, but none was started or it has "
                "ended; call reset() first"
            )
        observation, reward, success, info = self._advance(command)
        self._steps += 1
        terminated = success and self._terminate_on_success
        truncated = not terminated and self._steps >= self.task.max_episode_steps
        self._running = not (terminated or truncated)
        return observation, reward, terminated, truncated, {"success": success, **info}

    def render(self) -> NDArray[np.uint8]:
        """Draw the present state; nothing is drawn unless this is called.

        Returns:
            (height, width, 3) uint8 RGB, top row first.

        Raises:
            RenderError: If the environment was made without `render_mode="rgb_array"`, or if there
                is no such camera.
            EpisodeError: Before the first `reset`.
        """
        if self.render_mode is None:
            raise RenderError(
                f"{self.task.name}: render() needs an environment made with "
                f"envs.make({self.task.name!r}, render_mode='rgb_array')"
            )
        if not self._started:
            raise EpisodeError(f"{self.task.name}: call reset() before render()")
        return self._frame()

    def _limit_actions(self, low: float | Limits, high: float | Limits) -> None:
        """Set the bounds to which actions are clipped, of all components or of each."""
        self._limits = (low, high)
        self.action_space = spaces.Box(low, high, (self.task.action_dim,))

    @abstractmethod
    def _start(self, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Put the simulator at the start of the episode that a seed names; return what is seen."""

    @abstractmethod
    def _advance(
        self, command: NDArray[np.float64]
    ) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Simulate one control step; return what is seen, the reward, success, and more info."""

    @abstractmethod
    def _frame(self) -> NDArray[np.uint8]:
        """Draw the present state."""
