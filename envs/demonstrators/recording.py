"""Episodes played by demonstrators and written down, in this process or in several."""

from __future__ import annotations

import json
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import envs
from envs import demonstrators
from envs.robomimic import RobomimicEnv
from envs.task_env import Observation

_DEMONSTRATOR_STREAM = 1
"""Keeps the demonstrator's random numbers apart from the simulator's, which use the bare seed."""
_OPENING_STREAM = 2


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration of T steps.

    Attributes:
        seed: Seed that `reset` was given.
        success: Whether the task was solved, and still was at the end.
        observations: By key, (T, *shape): what was seen before each action.
        actions: (T, action_dim), deltas.
        actions_abs: (T, action_dim), the same as absolute poses.
        rewards: (T,) after each action.
        dones: (T,) 1 where the task was solved after the action, and at the last step.
        states: (T, state_dim) the simulator's state before each action.
        model_xml: The episode's model.
        style: How the demonstrator went about it, as JSON.
        env_meta: The environment, as JSON in robomimic's layout.
    """

    seed: int
    success: bool
    observations: dict[str, NDArray[np.float32]]
    actions: NDArray[np.float32]
    actions_abs: NDArray[np.float32]
    rewards: NDArray[np.float64]
    dones: NDArray[np.int64]
    states: NDArray[np.float64]
    model_xml: str
    style: str
    env_meta: str


@dataclass(frozen=True)
class FailedEpisode:
    """An episode that ended in an exception.

    Attributes:
        seed: Seed that `reset` was given.
        error: The traceback.
    """

    seed: int
    error: str


def record_episode(
    env: RobomimicEnv, seed: int, tail: int, opening: Opening | None = None
) -> Episode:
    """Let the task's demonstrator play one episode, or finish it.

    Args:
        env: An environment made with `terminate_on_success=False`.
        seed: Seed of the episode.
        tail: Steps to record after the first success.
        opening: Plays the first steps, which are not recorded: the demonstration then shows how to
            go on from where others get to. If it solves the task, there is nothing to show, and
            the episode is no success.
    """
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng([seed, _DEMONSTRATOR_STREAM])
    if opening is not None:
        observation = opening(env, observation, seed)
    solved = env.success
    demonstrator = demonstrators.make(env, rng)
    observations, actions, poses, rewards, successes, states = [], [], [], [], [], []
    remaining, truncated = (0 if solved else tail), False
    while remaining >= 0 and not truncated:
        action = demonstrator.act()
        observations.append(observation)
        states.append(env.simulator_state())
        actions.append(action)
        observation, reward, _, truncated, info = env.step(action)
        poses.append(env.absolute_action())
        rewards.append(reward)
        successes.append(info["success"])
        remaining -= any(successes)
    dones = np.array(successes, dtype=np.int64)
    dones[-1] = 1
    return Episode(
        seed=seed,
        success=successes[-1] and not solved,
        observations={key: np.stack([o[key] for o in observations]) for key in observation},
        actions=np.stack(actions),
        actions_abs=np.stack(poses),
        rewards=np.array(rewards),
        dones=dones,
        states=np.stack(states),
        model_xml=env.model_xml(),
        style=json.dumps(asdict(demonstrator.style), default=np.ndarray.tolist),
        env_meta=json.dumps(env.env_meta()),
    )


class Opening(Protocol):
    """Plays the first steps of an episode; picklable."""

    def __call__(self, env: RobomimicEnv, observation: Observation, seed: int) -> Observation:
        """Play some steps from a fresh reset, in delta mode in the end; the last observation."""
        ...


@dataclass(frozen=True)
class Disturbed:
    """The demonstrator's own beginning, under slow noise.

    Attributes:
        steps: Most steps that it takes.
        shift: Standard deviation of the noise on an action's translations.
        turn: The same on its rotations; much of it would tangle the arm up in its limits.
    """

    steps: int
    shift: float = 0.4
    turn: float = 0.08

    def __call__(self, env: RobomimicEnv, observation: Observation, seed: int) -> Observation:
        """Play some steps; the last observation."""
        rng = np.random.default_rng([seed, _OPENING_STREAM])
        demonstrator = demonstrators.make(env, rng)
        arm = [self.shift] * 3 + [self.turn] * 3 + [0.0]
        scale = np.tile(arm, env.task.action_dim // len(arm)).astype(np.float32)
        noise = np.zeros(env.task.action_dim, np.float32)
        for _ in range(rng.integers(self.steps + 1)):
            fresh = rng.normal(size=noise.shape).astype(np.float32)
            noise = 0.9 * noise + (1 - 0.9**2) ** 0.5 * fresh
            observation, *_ = env.step(demonstrator.act() + scale * noise)
        return observation


def record_episodes(
    task: str,
    seeds: Iterable[int],
    tail: int,
    workers: int,
    opening: Opening | None = None,
) -> Generator[Episode | FailedEpisode, None, None]:
    """Yield one episode per seed, in the order of the seeds, whatever the number of workers."""
    if workers == 1:
        env = _make_env(task)
        try:
            yield from (_attempt(env, seed, tail, opening) for seed in seeds)
        finally:
            env.close()
        return
    # Spawned, not forked: a fork after MuJoCo or OpenMP threads have started can hang.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (task, opening)
    )
    try:
        pending: deque[Future[Episode | FailedEpisode]] = deque()
        for seed in seeds:
            pending.append(pool.submit(_record_in_worker, seed, tail))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        yield from (future.result() for future in pending)
    finally:
        pool.shutdown(cancel_futures=True)


def _attempt(
    env: RobomimicEnv, seed: int, tail: int, opening: Opening | None
) -> Episode | FailedEpisode:
    try:
        return record_episode(env, seed, tail, opening)
    except Exception:
        # It depends on the seed alone, so raised again it would stop every run at this seed.
        return FailedEpisode(seed, traceback.format_exc())


def _make_env(task: str) -> RobomimicEnv:
    env = envs.make(task, terminate_on_success=False)
    assert isinstance(env, RobomimicEnv)
    return env


_worker_env: RobomimicEnv
"""The environment of a worker process, made once."""
_worker_opening: Opening | None
"""What plays the first steps there."""


def _start_worker(task: str, opening: Opening | None) -> None:
    global _worker_env, _worker_opening
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _worker_env, _worker_opening = _make_env(task), opening


def _record_in_worker(seed: int, tail: int) -> Episode | FailedEpisode:
    return _attempt(_worker_env, seed, tail, _worker_opening)
