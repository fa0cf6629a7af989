"""Push-T as a gymnasium environment, on gym-pusht."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import RenderError
from envs.pusht_keypoints import block_keypoints
from envs.specs import TaskSpec
from envs.task_env import Observation, TaskEnv

_DRAWN_SIZE = 512
"""The simulator draws squares of a pixel a table unit; smaller frames are shrunk from those."""


class PushTEnv(TaskEnv):
    """Push a T-shaped block onto its place on the table, with a round pusher.

    An action is where the pusher is to go, x and y in pixels of a 512 x 512 table; positions
    outside the table are clipped. The reward is the covered share of the goal divided by 0.95, at
    most 1. The physics are those of Chi et al.: their recorded actions give their recorded states.
    A control step takes 100 ms. Info holds "coverage" (share of the goal that the block covers) and
    "block_pose" (x, y, angle). In a frame a red cross marks the last action's target.

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
        super().__init__(task, render_mode, images)
        if set(self._images) - {"image"}:
            raise RenderError(f"images: expected no key but 'image', got {sorted(self._images)}")
        # The simulator draws only when asked, as its observations are the state.
        self.simulator = _import_pusht()(
            obs_type="state",
            render_mode="rgb_array",
            visualization_width=_DRAWN_SIZE,
            visualization_height=_DRAWN_SIZE,
        )
        self._size = (width, height)

    def _start(self, seed: int) -> tuple[Observation, dict[str, Any]]:
        _, raw = self.simulator.reset(seed=seed)
        coverage = float(self.simulator._get_coverage())
        return self._observe(raw), {"coverage": coverage, "block_pose": raw["block_pose"]}

    def _advance(
        self, command: NDArray[np.float64]
    ) -> tuple[Observation, float, bool, dict[str, Any]]:
        _, reward, success, _, raw = self.simulator.step(command)
        info = {"coverage": float(raw["coverage"]), "block_pose": raw["block_pose"]}
        return self._observe(raw), float(reward), bool(success), info

    def _frame(self) -> NDArray[np.uint8]:
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
