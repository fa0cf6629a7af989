"""Push-T as a gymnasium environment, on gym-pusht."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.actions import check_action
from envs.errors import EpisodeError, RenderError
from envs.pusht_keypoints import block_keypoints
from envs.specs import TaskSpec

Observation = dict[str, NDArray[np.float32] | NDArray[np.uint8]]

_DRAWN_SIZE = 512
"""The simulator draws squares of a pixel a table unit; smaller frames are shrunk from those."""


class PushTEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """Push a T-shaped block onto its place on the table, with a round pusher.

    An action is where the pusher is to go, x and y in pixels of a 512 x 512 table; positions
    outside the table are clipped. The reward is the covered share of the goal divided by 0.95, at
    most 1. The physics are those of Chi et al.: their recorded actions give their recorded states.

    Args:
        task: The task's spec.
        render_mode: None, or "rgb_array" if `render()` is to be called.
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        images: Images to observe, besides: `{"image": (height, width)}`; uint8 RGB
            `(height, width, 3)`, without the action's cross, as Chi et al. recorded them.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        task: TaskSpec,
        render_mode: str | None = None,
        *,
        width: int = 256,
        height: int = 256,
        images: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise RenderError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.task = task
        self.render_mode = render_mode
        # The simulator draws only when asked, as its observations are the state.
        self.simulator = _import_pusht()(
            obs_type="state",
            render_mode="rgb_array",
            visualization_width=_DRAWN_SIZE,
            visualization_height=_DRAWN_SIZE,
        )
        self._size = (width, height)
        self._images = dict(images or {})
        if set(self._images) - {"image"}:
            raise RenderError(f"images: expected no key but 'image', got {sorted(self._images)}")
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, shape) for key, shape in task.observations}
            | {k: spaces.Box(0, 255, (*size, 3), np.uint8) for k, size in self._images.items()}
        )
        self.action_space = spaces.Box(task.action_low, task.action_high, (task.action_dim,))
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
            The observation, and info: "success" (False), "coverage" (share of the goal that the
            block covers), "block_pose" (x, y, angle), "seed" (reproduces this episode).
        """
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        _, raw = self.simulator.reset(seed=episode_seed)
        self._steps = 0
        self._started = self._running = True
        info = {
            "success": False,
            "coverage": float(self.simulator._get_coverage()),
            "block_pose": raw["block_pose"],
            "seed": episode_seed,
        }
        return self._observe(raw), info

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run one control step (100 ms).

        Args:
            action: (2,) target of the pusher in pixels.

        Returns:
            Observation, reward, terminated (by success), truncated (by the step limit), and info
            with "success", "coverage" and "block_pose".

        Raises:
            ActionError: If the action has the wrong shape or is not finite.
            EpisodeError: Before `reset`, or after the episode has ended.
        """
        command = check_action(action, self.task, self.task.action_low, self.task.action_high)
        if not self._running:
            raise EpisodeError(
                f"{self.task.name}: step() needs a running episode, but none was started or it has "
                "ended; call reset() first"
            )
        _, reward, success, _, raw = self.simulator.step(command)
        self._steps += 1
        terminated = bool(success)
        truncated = not terminated and self._steps >= self.task.max_episode_steps
        self._running = not (terminated or truncated)
        info = {
            "success": terminated,
            "coverage": float(raw["coverage"]),
            "block_pose": raw["block_pose"],
        }
        return self._observe(raw), float(reward), terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """Draw the present state; nothing is drawn unless this is called.

        Returns:
            (height, width, 3) uint8 RGB; a red cross marks the last action's target.

        Raises:
            RenderError: If the environment was made without `render_mode="rgb_array"`.
            EpisodeError: Before the first `reset`.
        """
        if self.render_mode is None:
            raise RenderError(
                f"{self.task.name}: render() needs an environment made with "
                f"envs.make({self.task.name!r}, render_mode='rgb_array')"
            )
        if not self._started:
            raise EpisodeError(f"{self.task.name}: call reset() before render()")
        import cv2

        drawn = self.simulator.render()
        frame: NDArray[np.uint8] = cv2.resize(drawn, self._size, interpolation=cv2.INTER_AREA)
        return frame

    def close(self) -> None:
        """End the episode; calling it twice does no harm."""
        self.simulator.close()
        self._running = False

    def _observe(self, raw: dict[str, Any]) -> Observation:
        """Keypoints of the block, and the pusher's position; and the images, if any."""
        observation: Observation = {
            "keypoint": block_keypoints(raw["block_pose"]).astype(np.float32),
            "agent_pos": np.asarray(raw["pos_agent"], dtype=np.float32),
        }
        for key, (height, width) in self._images.items():
            self.simulator.observation_height, self.simulator.observation_width = height, width
            observation[key] = self.simulator._render()
        return observation


def _import_pusht() -> type[Any]:
    """Import gym-pusht's environment without pygame's greeting and deprecation warnings."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gym_pusht.envs.pusht import PushTEnv as Simulator
    return Simulator
