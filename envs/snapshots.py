"""Exact snapshots of a Robomimic environment: restore one, and the future is the same bit for bit.

robosuite's own `reset_to(state)` leaves controller goals, gripper commands and observables behind.
A snapshot may be restored into the instance that made it, or into another of the same task, after a
`reset` with the same seed (the seed chooses the model, which is not in the snapshot; another model
is refused).
"""

import copy
import hashlib
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs.errors import EpisodeError, SnapshotError
from envs.robomimic import RobomimicEnv

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_COMING = ("_", "contact", "efc_", "i", "map_")
"""Of names private, or of arrays whose sizes are those of contacts, constraints and islands."""
_MODEL = ("actuator_", "body_", "dof_", "eq_", "geom_", "jnt_", "site_", "tendon_")
_LOOKS = ("geom_rgba", "site_rgba", "geom_matid", "site_matid")
"""Arrays of the model that motion follows from, and those among them that are changed for looks."""
_NUMERIC = (np.ndarray, float, int, bool, type(None))
_OBSERVABLE = ("_time_since_last_sample", "_current_delay", "_current_observed_value", "_sampled")
_CLOCKS = ("timestep", "cur_time", "done")
_SETTINGS = (
    "input_ref_frame",
    "input_min",
    "input_max",
    "output_min",
    "output_max",
    "impedance_mode",
    "kp",
    "kd",
    "uncoupling",
)
"""What was chosen of a controller when its environment was made."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that an environment's future depends on, but for the model, which is but named.

    Attributes:
        task: The task's name.
        model: A digest of the model.
        controllers: For each robot, what was chosen of its arm's controller.
        physics: MuJoCo's integration state.
        derived: Poses, velocities and forces as they follow from the state, by MuJoCo's names:
            until the next substep they are of the beginning of the last. Contacts alone are found
            anew.
        robots: For each robot its own numeric attributes, its grippers' and its controllers'.
        observables: The timers and values of each observable.
        cache: robosuite's observation cache.
        clocks: robosuite's step counter, time and done flag.
        rng: State of the simulator's generator.
        seeds: State of the generator that names the episodes to come.
        episode: Step counter, last action and flags of the gymnasium environment.
    """

    task: str
    model: str
    controllers: list[dict[str, Any]]
    physics: NDArray[np.float64]
    derived: dict[str, NDArray[Any]]
    robots: list[dict[str, Any]]
    observables: dict[str, tuple[Any, ...]]
    cache: dict[str, Any]
    clocks: dict[str, Any]
    rng: dict[str, Any]
    seeds: dict[str, Any]
    episode: dict[str, Any]


_EPISODE = ("_steps", "_last_action", "_running", "_started", "_action_mode")


def save(env: RobomimicEnv) -> Snapshot:
    """Take a snapshot; the environment is left as it is.

    Raises:
        EpisodeError: Before the first `reset`, or after `close`.
        SnapshotError: If it is no Robomimic environment.
    """
    _expect_started(env, "save")
    simulation = env.robosuite
    model, data = simulation.sim.model._model, simulation.sim.data._data
    physics = np.empty(mujoco.mj_stateSize(model, _STATE))
    mujoco.mj_getState(model, data, physics, _STATE)
    return Snapshot(
        task=env.task.name,
        model=_digest(model),
        controllers=[_settings(robot) for robot in simulation.robots],
        physics=physics,
        derived={name: values.copy() for name, values in _derived(data).items()},
        robots=[_save_robot(robot) for robot in simulation.robots],
        observables={
            name: tuple(copy.deepcopy(getattr(observable, key)) for key in _OBSERVABLE)
            for name, observable in simulation._observables.items()
        },
        cache=copy.deepcopy(simulation._obs_cache),
        clocks={key: getattr(simulation, key) for key in _CLOCKS},
        rng=copy.deepcopy(simulation.rng.bit_generator.state),
        seeds=copy.deepcopy(dict(env.np_random.bit_generator.state)),
        episode={key: copy.deepcopy(getattr(env, key)) for key in _EPISODE},
    )


def restore(env: RobomimicEnv, snapshot: Snapshot) -> None:
    """Put an environment back to where a snapshot was taken.

    Raises:
        EpisodeError: Before the first `reset`, or after `close`.
        SnapshotError: If it is of another task, of an environment with another controller, of an
            episode whose seed made another model, or damaged; the environment is as it was.
    """
    _expect_started(env, "restore")
    simulation = env.robosuite
    model, data = simulation.sim.model._model, simulation.sim.data._data
    here = save(env)
    if snapshot.task != here.task:
        raise SnapshotError(
            f"expected a snapshot of {here.task}, the environment's task, got one of "
            f"{snapshot.task}; restore it into an environment of its own task"
        )
    if snapshot.model != here.model:
        raise SnapshotError(
            f"{snapshot.task}: the snapshot is of an episode with another model (sizes and places "
            "that the seed draws); call reset(seed=...) with that episode's seed first"
        )
    if str(snapshot.controllers) != str(here.controllers):
        raise SnapshotError(
            f"{snapshot.task}: the snapshot is of an environment with the controllers "
            f"{snapshot.controllers}, this one has {here.controllers}; make it with the same "
            "robosuite_arguments"
        )
    for name in _WHOLE:
        _expect_alike(name, getattr(snapshot, name), getattr(here, name))
    mujoco.mj_setState(model, data, snapshot.physics, _STATE)
    mujoco.mj_forward(model, data)
    # In place: observables hold on to these arrays. The forward pass has also warmed the solver's
    # start up anew, which is part of the state.
    for name, array in _derived(data).items():
        array[:] = snapshot.derived[name]
    mujoco.mj_setState(model, data, snapshot.physics, _STATE)
    for robot, saved in zip(simulation.robots, snapshot.robots, strict=True):
        _restore_robot(robot, copy.deepcopy(saved))
    for name, values in snapshot.observables.items():
        for key, value in zip(_OBSERVABLE, copy.deepcopy(values), strict=True):
            setattr(simulation._observables[name], key, value)
    simulation._obs_cache = copy.deepcopy(snapshot.cache)
    for key, value in snapshot.clocks.items():
        setattr(simulation, key, value)
    simulation.rng.bit_generator.state = snapshot.rng
    env.np_random.bit_generator.state = snapshot.seeds
    for key, value in copy.deepcopy(snapshot.episode).items():
        setattr(env, key, value)
    env.action_mode = snapshot.episode["_action_mode"]


_WHOLE = ("physics", "derived", "robots", "observables", "clocks", "rng", "seeds", "episode")


def _expect_alike(name: str, found: Any, here: Any) -> None:
    """Raise unless a part of a snapshot has the names and sizes that it has in this environment.

    Of what a controller or an observable holds nothing is expected: a goal is None until it is set,
    and a gripper's command grows from one number to two with the first of them.
    """
    if name.startswith("robots.") and name.count(".") == 3:
        return
    if isinstance(here, dict) and (not isinstance(found, dict) or found.keys() != here.keys()):
        theirs = sorted(found) if isinstance(found, dict) else found
        raise SnapshotError(f"damaged snapshot: {name}: expected {sorted(here)}, got {theirs}")
    if isinstance(here, list) and (not isinstance(found, list) or len(found) != len(here)):
        raise SnapshotError(f"damaged snapshot: {name}: expected {len(here)} entries, got {found}")
    if isinstance(here, np.ndarray) and name.split(".")[0] in ("physics", "derived"):
        theirs = np.asarray(found)
        if (theirs.shape, theirs.dtype) != (here.shape, here.dtype):
            raise SnapshotError(
                f"damaged snapshot: {name}: expected {here.dtype} of shape {here.shape}, got "
                f"{theirs.dtype} of shape {theirs.shape}"
            )
        if name == "physics" and not np.isfinite(theirs).all():
            raise SnapshotError(f"damaged snapshot: {name}: expected finite numbers")
    if isinstance(here, dict):
        for key in here:
            _expect_alike(f"{name}.{key}", found[key], here[key])
    if isinstance(here, list):
        for index, entry in enumerate(here):
            _expect_alike(f"{name}.{index}", found[index], entry)


def _expect_started(env: RobomimicEnv, what: str) -> None:
    if not isinstance(env, RobomimicEnv):
        raise SnapshotError(f"expected an environment of Robomimic's, got {env!r}")
    if not env._started:
        raise EpisodeError(f"{env.task.name}: call reset() before {what}()")
    if env.robosuite.sim is None:
        raise EpisodeError(f"{env.task.name}: the environment is closed; make another")


def _settings(robot: Any) -> dict[str, Any]:
    arm = robot.composite_controller.part_controllers["right"]
    values = {name: getattr(arm, name) for name in _SETTINGS}
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def _digest(model: mujoco.MjModel) -> str:
    """What names a model: a digest of the arrays that motion follows from."""
    digest = hashlib.sha256()
    for name in sorted(dir(model)):
        if name.startswith(_MODEL) and name not in _LOOKS:
            digest.update(name.encode() + np.ascontiguousarray(getattr(model, name)).tobytes())
    return digest.hexdigest()


def _derived(data: mujoco.MjData) -> dict[str, NDArray[Any]]:
    """The arrays whose sizes the model says; those of contacts and constraints come and go."""
    found = {name: getattr(data, name) for name in dir(data) if not name.startswith(_COMING)}
    return {name: values for name, values in found.items() if isinstance(values, np.ndarray)}


def _save_robot(robot: Any) -> dict[str, Any]:
    parts = robot.composite_controller.part_controllers
    return {
        "grippers": {
            arm: copy.deepcopy(gripper.current_action) for arm, gripper in robot.gripper.items()
        },
        "parts": {
            name: {
                key: copy.deepcopy(value)
                for key, value in vars(part).items()
                if isinstance(value, _NUMERIC)
            }
            for name, part in parts.items()
        },
        "recent": {
            key: copy.deepcopy(value)
            for key, value in vars(robot).items()
            if key.startswith("recent_") or key == "torques"
        },
    }


def _restore_robot(robot: Any, saved: dict[str, Any]) -> None:
    for arm, action in saved["grippers"].items():
        robot.gripper[arm].current_action = action
    for name, values in saved["parts"].items():
        vars(robot.composite_controller.part_controllers[name]).update(values)
    vars(robot).update(saved["recent"])
