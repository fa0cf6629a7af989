"""The Robomimic tasks as gymnasium environments on robosuite."""

import re
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from envs.actions import check_action
from envs.errors import ActionError, EpisodeError, RenderError
from envs.rendering import SceneRenderer, camera_index, make_renderer
from envs.robosuite_setup import TASKS, env_kwargs, import_robosuite
from envs.specs import ActionMode, TaskSpec

Observation = dict[str, NDArray[np.float32] | NDArray[np.uint8]]

_IMAGE = "_image"
"""What robosuite and Robomimic append to a camera's name."""
_ARM = 7
"""Numbers in one arm's action."""


class RobomimicEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One Robomimic task: observations of the state, end-effector actions, sparse reward.

    A delta action holds, per arm, a translation (1 is 5 cm) and a rotation vector (1 is 0.5 rad) in
    the world frame, and the gripper (-1 opens, 1 closes); components outside [-1, 1] are clipped.
    An absolute action holds, per arm, where the hand (the grip site) is to go: position in metres
    and rotation vector in radians, in the world frame, neither clipped; and the gripper.
    `object` is laid out as robosuite 1.5 does it. In Robomimic's own Lift data, from robosuite 1.4
    and older, the last three components (hand to cube) have the opposite sign.

    Every `reset` rebuilds the simulation from a generator seeded in place, so that a seed always
    gives the same episode, bit for bit, in this instance or another. `info["seed"]` names it.

    Args:
        task: The task's spec.
        render_mode: None, or "rgb_array" if `render()` is to be called.
        camera: Camera for `render()`; None for the task's usual one.
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        action_mode: "delta" or "absolute".
        robosuite_arguments: Arguments of `robosuite.make` in place of the usual ones; see
            `env_meta.make_from_meta`.
        images: Images to observe, besides: for each key, `<camera>_image`, height and width; uint8
            RGB `(height, width, 3)`, top row first, as Robomimic's files hold them.
        terminate_on_success: Whether success ends an episode. Without it an episode goes on to the
            step limit; demonstrations are recorded so, to hold the steps after success.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        task: TaskSpec,
        render_mode: str | None = None,
        *,
        camera: str | None = None,
        width: int = 256,
        height: int = 256,
        action_mode: ActionMode = "delta",
        robosuite_arguments: Mapping[str, Any] | None = None,
        images: Mapping[str, tuple[int, int]] | None = None,
        terminate_on_success: bool = True,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise RenderError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        row = TASKS[task.name]
        self.task = task
        self.render_mode = render_mode
        self._arguments = env_kwargs(row, action_mode) | dict(robosuite_arguments or {})
        self.robosuite = import_robosuite().make(row.env_name, **self._arguments)
        self._images = dict(images or {})
        for key in self._images:
            if not key.endswith(_IMAGE):
                raise RenderError(f"images: expected keys <camera>{_IMAGE}, got {key!r}")
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, shape) for key, shape in task.observations}
            | {k: spaces.Box(0, 255, (*size, 3), np.uint8) for k, size in self._images.items()}
        )
        self._set_action_mode(action_mode)
        self._camera = camera or row.camera
        self._size = (height, width)
        self._terminate_on_success = terminate_on_success
        self._renderers: dict[tuple[int, int], SceneRenderer] = {}
        self._steps = 0
        self._last_action: NDArray[np.float64] | None = None
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
            The observation, and info: "success" (False), "seed" (reproduces this episode).
        """
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        # The placement samplers hold this very generator, so its state is set in place.
        self.robosuite.rng.bit_generator.state = np.random.default_rng(
            episode_seed
        ).bit_generator.state
        self._close_renderers()  # a hard reset replaces the model that renderers look at
        raw = self.robosuite.reset()
        self._tell_controllers()  # they are new ones
        self._steps = 0
        self._last_action = None
        self._started = self._running = True
        return self._observe(raw), {"success": False, "seed": episode_seed}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run one control step (50 ms).

        Args:
            action: (action_dim,) as described at the class.

        Returns:
            Observation, reward (1 at success, else 0), terminated (by success), truncated (by the
            step limit), and info with "success".

        Raises:
            ActionError: If the action has the wrong shape or is not finite.
            EpisodeError: Before `reset`, or after the episode has ended.
        """
        command = check_action(action, self.task, -self._high, self._high)
        if not self._running:
            raise EpisodeError(
                f"{self.task.name}: step() needs a running episode, but none was started or it has "
                "ended; call reset() first"
            )
        raw, reward, _, _ = self.robosuite.step(command)
        self._steps += 1
        self._last_action = command
        success = self.success
        terminated = success and self._terminate_on_success
        truncated = not terminated and self._steps >= self.task.max_episode_steps
        self._running = not (terminated or truncated)
        return self._observe(raw), float(reward), terminated, truncated, {"success": success}

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
        return self._draw(self._camera, self._size)

    def _draw(self, camera: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        model = self.robosuite.sim.model._model
        index = camera_index(model, camera)
        if size not in self._renderers:
            self._renderers[size] = make_renderer(model, *size)
        return self._renderers[size].render(self.robosuite.sim.data._data, index)

    def close(self) -> None:
        """Free the simulation and the renderers; calling it twice does no harm."""
        self._close_renderers()
        if hasattr(self.robosuite.sim, "_render_context_offscreen"):
            self.robosuite.close()
        else:
            # Closed before, or Ctrl-C came while robosuite was freeing it: it cannot do so twice.
            self.robosuite.sim = None
        self._running = False

    @property
    def success(self) -> bool:
        """Whether the task is solved in the present state."""
        return bool(self.robosuite._check_success())

    @property
    def action_mode(self) -> ActionMode:
        """What actions mean: "delta" or "absolute"; may be changed between two steps."""
        return self._action_mode

    @action_mode.setter
    def action_mode(self, mode: ActionMode) -> None:
        self._set_action_mode(mode)
        self._tell_controllers()

    def _set_action_mode(self, mode: ActionMode) -> None:
        if mode not in self.task.action_modes:
            raise ActionError(
                f"{self.task.name}: unknown action mode {mode!r}; expected one of "
                f"{', '.join(self.task.action_modes)}"
            )
        self._action_mode = mode
        self._high = np.full(self.task.action_dim, self.task.action_high, np.float32)
        if mode == "absolute":
            self._high.reshape(-1, _ARM)[:, :6] = np.inf
        self.action_space = spaces.Box(-self._high, self._high)

    def _tell_controllers(self) -> None:
        for robot in self.robosuite.robots:
            robot.composite_controller.part_controllers["right"].input_type = self._action_mode

    def absolute_action(self) -> NDArray[np.float32]:
        """Return the last action as an absolute one: each hand's goal, and the gripper's command.

        Returns:
            (action_dim,) that moves an environment in this state as the last action did.

        Raises:
            EpisodeError: Before the first `step` of an episode.
        """
        if self._last_action is None:
            raise EpisodeError(f"{self.task.name}: call step() before absolute_action()")
        parts = []
        commands = self._last_action.reshape(-1, _ARM)
        for robot, command in zip(self.robosuite.robots, commands, strict=True):
            arm = robot.composite_controller.part_controllers["right"]
            turn = Rotation.from_matrix(arm.goal_ori).as_rotvec()
            parts += [arm.goal_pos, turn, command[6:]]
        return np.concatenate(parts, dtype=np.float32)

    def simulator_state(self) -> NDArray[np.float64]:
        """Return (1 + nq + nv,) time, positions and velocities, as Robomimic's files hold them."""
        state: NDArray[np.float64] = self.robosuite.sim.get_state().flatten()
        return state

    def model_xml(self) -> str:
        """Return this episode's model, with asset paths that start at `robosuite/`."""
        xml: str = self.robosuite.sim.model.get_xml()
        return re.sub(r'file="[^"]*/(robosuite/models/[^"]*)"', r'file="\1"', xml)

    def env_meta(self) -> dict[str, Any]:
        """Return what Robomimic's files say of an environment (`env_args`), JSON-serialisable."""
        row = TASKS[self.task.name]
        return {
            "env_name": row.env_name,
            "env_version": import_robosuite().__version__,
            "type": 1,  # robomimic's EnvType.ROBOSUITE_TYPE
            "env_kwargs": self._arguments,
        }

    def _observe(self, raw: Mapping[str, Any]) -> Observation:
        """Pick and cast the task's observations out of robosuite's, and draw the images."""
        names = {"object": "object-state"}
        state: Observation = {
            key: np.asarray(raw[names.get(key, key)], dtype=np.float32)
            for key, _ in self.task.observations
        }
        images: Observation = {
            key: self._draw(key.removesuffix(_IMAGE), size) for key, size in self._images.items()
        }
        return state | images

    def _close_renderers(self) -> None:
        while self._renderers:
            self._renderers.popitem()[1].close()
