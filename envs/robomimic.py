"""The Robomimic tasks as gymnasium environments on robosuite."""

import copy
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from envs.errors import ActionError, EpisodeError, RenderError
from envs.rendering import SceneRenderer, camera_index, make_renderer
from envs.robosuite_setup import TASKS, env_kwargs, import_robosuite
from envs.specs import ActionMode, TaskSpec
from envs.task_env import Observation, TaskEnv

_IMAGE = "_image"
"""What robosuite and Robomimic append to a camera's name."""
_ARM = 7
"""Numbers in one arm's action."""


class RobomimicEnv(TaskEnv):
    """One Robomimic task: observations of the state, end-effector actions, sparse reward.

    A delta action holds, per arm, a translation (1 is 5 cm) and a rotation vector (1 is 0.5 rad) in
    the world frame, and the gripper (-1 opens, 1 closes); components outside [-1, 1] are clipped.
    An absolute action holds, per arm, where the hand (the grip site) is to go: position in metres
    and rotation vector in radians, in the world frame, neither clipped; and the gripper. A control
    step takes 50 ms; the reward is 1 at success, else 0.
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
            `env_meta.make_from_meta`. Its `input_ref_frame` may be the robot's base instead of the
            world; `action_mode` goes before its `input_type`.
        images: Images to observe, besides: for each key, `<camera>_image`, height and width; uint8
            RGB `(height, width, 3)`, top row first, as Robomimic's files hold them. They are drawn
            by OpenGL, or refused where there is none (see `rendering`).
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
        super().__init__(task, render_mode, images, terminate_on_success)
        for key in self._images:
            if not key.endswith(_IMAGE):
                raise RenderError(f"images: expected keys <camera>{_IMAGE}, got {key!r}")
        row = TASKS[task.name]
        self._arguments = env_kwargs(row, action_mode) | dict(robosuite_arguments or {})
        self.robosuite = import_robosuite().make(row.env_name, **self._arguments)
        self._set_action_mode(action_mode)
        self._camera = camera or row.camera
        self._size = (height, width)
        self._renderers: dict[tuple[int, int, bool], SceneRenderer] = {}
        self._last_action: NDArray[np.float64] | None = None

    def _start(self, seed: int) -> tuple[Observation, dict[str, Any]]:
        # The placement samplers hold this very generator, so its state is set in place.
        generator = np.random.default_rng(seed)
        self.robosuite.rng.bit_generator.state = generator.bit_generator.state
        self._close_renderers()  # a hard reset replaces the model that renderers look at
        raw = self.robosuite.reset()
        self._tell_controllers()  # they are new ones
        self._last_action = None
        return self._observe(raw), {}

    def _advance(
        self, command: NDArray[np.float64]
    ) -> tuple[Observation, float, bool, dict[str, Any]]:
        raw, reward, _, _ = self.robosuite.step(command)
        self._last_action = command
        return self._observe(raw), float(reward), self.success, {}

    def _frame(self) -> NDArray[np.uint8]:
        return self._draw(self._camera, self._size, observed=False)

    def _draw(self, camera: str, size: tuple[int, int], observed: bool) -> NDArray[np.uint8]:
        model = self.robosuite.sim.model._model
        index = camera_index(model, camera)
        key = (*size, observed)
        if key not in self._renderers:
            self._renderers[key] = make_renderer(model, *size, observed)
        return self._renderers[key].render(self.robosuite.sim.data._data, index)

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
        high = np.full(self.task.action_dim, self.task.action_high, np.float32)
        if mode == "absolute":
            high.reshape(-1, _ARM)[:, :6] = np.inf
        self._limit_actions(-high, high)

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
        arguments = copy.deepcopy(self._arguments)
        controllers = arguments["controller_configs"]
        for one in controllers if isinstance(controllers, list) else [controllers]:
            one["body_parts"]["right"]["input_type"] = self._action_mode
        return {
            "env_name": row.env_name,
            "env_version": import_robosuite().__version__,
            "type": 1,  # robomimic's EnvType.ROBOSUITE_TYPE
            "env_kwargs": arguments,
        }

    def _observe(self, raw: Mapping[str, Any]) -> Observation:
        """Pick and cast the task's observations out of robosuite's, and draw the images."""
        names = {"object": "object-state"}
        state: Observation = {
            key: np.asarray(raw[names.get(key, key)], dtype=np.float32)
            for key, _ in self.task.observations
        }
        images: Observation = {
            key: self._draw(key.removesuffix(_IMAGE), size, observed=True)
            for key, size in self._images.items()
        }
        return state | images

    def _close_renderers(self) -> None:
        while self._renderers:
            self._renderers.popitem()[1].close()
