"""``Policy``: the state of one episode, or of a batch of episodes, around a shared planner."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asd_policy.errors import EpisodeError
from asd_policy.policies.observation import read_observation
from asd_policy.policies.planner import Planner
from asd_policy.policies.spec import PolicySpec
from asd_policy.sampling import ChunkNoise, NoiseStream, Sampler, parse_sampler, shifted


@dataclass(frozen=True)
class EpisodeReport:
    """What an episode has cost so far: chunks planned, network calls and evaluations for them."""

    chunks: int
    calls: int
    evaluations: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The report of one planning; entries are in the order of ``episodes``.

    Attributes:
        episodes: Indices of the episodes that were planned for, together.
        history: What was planned from, raw, ``(n, To, observation_dim)``.
        previous: For each episode the chunk planned before, normalised and shifted to now, ``(Tp,
            planned_dim)``; None for an episode's first.
        begun: For each episode what its chain began with in place of noise: the actions executed,
            scaled, ``(places, planned_dim)``; none but of policies whose window grows.
        chunks: The planned actions, ``(n, Tp, action_dim)``.
        calls: Sequential network calls of each chunk.
        evaluations: Rows through the network of each chunk.
        accepted: For each chunk, the steps that each call committed.
        seconds: Wall-clock time of this planning, all its episodes together.
    """

    episodes: tuple[int, ...]
    history: NDArray[np.float32]
    previous: list[Tensor | None]
    begun: list[Tensor]
    chunks: NDArray[np.float32]
    calls: list[int]
    evaluations: list[int]
    accepted: list[list[int]]
    seconds: float


@dataclass
class _Episode:
    """History, queue and noise stream of one episode."""

    noise: NoiseStream
    frames: int = 0  # seen so far
    history: NDArray[np.float32] | None = None
    queue: list[NDArray[np.float32]] = field(default_factory=list)
    chunk: Tensor | None = None  # the newest, normalised
    executed: list[Tensor] = field(default_factory=list)  # normalised, where the policy sees them
    chunks: int = 0
    calls: int = 0
    evaluations: int = 0


def begun_with(noise: ChunkNoise, begun: Sequence[Tensor]) -> ChunkNoise:
    """Noise with which each chain begins at what is given for it, ``(places, planned_dim)``."""
    initial = noise.initial.clone()
    for row, actions in enumerate(begun):
        initial[row, : len(actions)] = actions
    return replace(noise, initial=initial)


class Policy:
    """Acts at every control step; plans a new chunk whenever the last one has run out.

    Example:
        >>> policy = asd_policy.load_policy("checkpoints/pusht_chi_unet", sampler="asd")
        >>> policy.reset(seed=7)
        >>> action = policy.act(observation)

    Args:
        planner: Network, chain and normalisers.
        sampler: A sampler or its name.
    """

    def __init__(self, planner: Planner, sampler: str | Sampler = "asd") -> None:
        self.planner = planner
        self.sampler = parse_sampler(sampler)
        self.last_plan: Plan | None = None
        self._episodes: list[_Episode] = []
        self._single = True

    @property
    def spec(self) -> PolicySpec:
        """Shapes, horizons, network and chain."""
        return self.planner.spec

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.planner.device

    @property
    def seeds(self) -> list[int]:
        """The seed of each episode, also where ``reset`` chose it."""
        return [episode.noise.seed for episode in self._episodes]

    def with_sampler(self, sampler: str | Sampler) -> Policy:
        """A policy with the same weights, another sampler and episodes of its own."""
        return Policy(self.planner, sampler)

    def reset(
        self, seed: int | Sequence[int] | None = None, repeat: int | Sequence[int] = 0
    ) -> None:
        """Start one episode, or a batch of them: clear history and queue, open the noise stream.

        Args:
            seed: The episode's seed; a sequence starts as many episodes, and ``act`` then takes
                and returns batches. None chooses a fresh one, to be read from ``seeds``.
            repeat: Distinguishes runs of the same seed; one for all, or one for each.

        Raises:
            EpisodeError: If there are no seeds, or another number of repeats.
            SamplerError: If a seed or repeat is not a non-negative integer.
        """
        single = seed is None or isinstance(seed, (int, np.integer))
        if seed is None:
            seed = secrets.randbits(32)
        seeds = [seed] if isinstance(seed, (int, np.integer)) else list(seed)
        repeats = [repeat] * len(seeds) if isinstance(repeat, (int, np.integer)) else list(repeat)
        if not seeds or len(repeats) != len(seeds):
            raise EpisodeError(
                f"expected at least one seed and one repeat for each; got {len(seeds)} seeds and "
                f"{len(repeats)} repeats"
            )
        episodes = [_Episode(NoiseStream(s, r)) for s, r in zip(seeds, repeats, strict=True)]
        self._episodes, self._single, self.last_plan = episodes, single, None

    def restart(self, episode: int, seed: int, repeat: int = 0) -> None:
        """Put a fresh episode in the place of one of the batch; the others go on untouched.

        Raises:
            EpisodeError: If there is no such episode.
            SamplerError: If the seed or repeat is not a non-negative integer.
        """
        self._check(episode)
        self._episodes[episode] = _Episode(NoiseStream(seed, repeat))

    def episode_report(self, episode: int = 0) -> EpisodeReport:
        """What an episode has cost since it started.

        Raises:
            EpisodeError: If there is no such episode.
        """
        self._check(episode)
        state = self._episodes[episode]
        return EpisodeReport(state.chunks, state.calls, state.evaluations)

    def act(
        self, observation: Mapping[str, Any], episodes: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """One control step.

        Args:
            observation: For each of the checkpoint's keys an array of its shape, with a leading
                axis of episodes if ``reset`` was given a sequence.
            episodes: Which episodes of the batch act, in the order of the rows; all when None.

        Returns:
            The action ``(action_dim,)``, or ``(N, action_dim)`` for N episodes.

        Raises:
            ObservationError: If the observation is not what the checkpoint says.
            EpisodeError: If no episode was started, or one is unknown or named twice.
            PlanningError: If planning gave something that is no action.
            In each case the episodes are as they were before the call.
        """
        acting = self._acting(episodes)
        frames = read_observation(self.spec, observation, None if self._single else len(acting))
        histories = [
            self._extended(self._episodes[index], frame)
            for index, frame in zip(acting, frames, strict=True)
        ]
        empty = [row for row, index in enumerate(acting) if not self._episodes[index].queue]
        if empty:
            self._plan([acting[row] for row in empty], np.stack([histories[row] for row in empty]))
        for index, history in zip(acting, histories, strict=True):
            self._episodes[index].history = history
            self._episodes[index].frames += 1
        actions = np.stack([self._episodes[index].queue.pop(0) for index in acting])
        return actions[0] if self._single else actions

    def _plan(self, indices: list[int], history: NDArray[np.float32]) -> None:
        spec = self.spec
        shape, steps = self.planner.chunk_shape, self.planner.chain.num_steps
        episodes = [self._episodes[index] for index in indices]
        noise = ChunkNoise.stack(
            [episode.noise.chunk(episode.chunks, steps, shape) for episode in episodes]
        )
        previous = [self._previous(episode) for episode in episodes]
        begun = [self._begun(episode) for episode in episodes]
        firsts = [spec.first_action] * len(episodes)
        if spec.context == "growing":
            firsts = [min(episode.frames, spec.first_action) for episode in episodes]
            noise = begun_with(noise, begun)
        planned = self.planner.plan(history, noise, self.sampler, previous)
        result = planned.result
        for row, (episode, first) in enumerate(zip(episodes, firsts, strict=True)):
            episode.queue = list(planned.actions[row, first : first + spec.action_horizon])
            episode.chunk = result.x[row]
            if spec.context == "growing":
                executed = [*episode.executed, planned.chunks[row, first]]
                episode.executed = executed[max(0, len(executed) - spec.obs_horizon + 1) :]
            episode.chunks += 1
            episode.calls += result.calls[row]
            episode.evaluations += result.evaluations[row]
        self.last_plan = Plan(
            tuple(indices),
            history,
            previous,
            begun,
            planned.actions,
            result.calls,
            result.evaluations,
            result.accepted,
            planned.seconds,
        )

    def _previous(self, episode: _Episode) -> Tensor | None:
        if episode.chunk is None:
            return None
        # A window that still grows has its frames where they were.
        grows = self.spec.context == "growing" and episode.frames < self.spec.obs_horizon
        return shifted(episode.chunk, 0 if grows else self.spec.action_horizon)

    def _begun(self, episode: _Episode) -> Tensor:
        """The actions executed, which the chain noises again with the others from its first step.

        As the original does.
        """
        if not episode.executed:
            return torch.empty(0, self.spec.planned_dim)
        return torch.stack(episode.executed).cpu() / self.planner.chain.initial_std

    def _extended(self, episode: _Episode, frame: NDArray[np.float32]) -> NDArray[np.float32]:
        """The newest To frames; where there are fewer, one is repeated.

        That is the first, before the others; or the newest, after them, where no action sees it.
        """
        history, size = episode.history, self.spec.obs_horizon
        if history is None:
            return np.repeat(frame[None], size, axis=0)
        if self.spec.context == "growing" and episode.frames < size:
            return np.concatenate(
                [history[: episode.frames], np.repeat(frame[None], size - episode.frames, axis=0)]
            )
        return np.concatenate([history[1:], frame[None]])

    def _acting(self, episodes: Sequence[int] | None) -> list[int]:
        if not self._episodes:
            raise EpisodeError("no episode was started: call reset(seed=…) first")
        if episodes is None:
            return list(range(len(self._episodes)))
        if self._single:
            raise EpisodeError(
                "episodes=… is for a batch: reset with a sequence of seeds to act for several"
            )
        acting = [int(index) for index in episodes]
        for index in acting:
            self._check(index)
        if not acting or len(set(acting)) != len(acting):
            raise EpisodeError(f"expected one or more different episodes, got {acting}")
        return acting

    def _check(self, episode: int) -> None:
        if not 0 <= episode < len(self._episodes):
            raise EpisodeError(
                f"there is no episode {episode}: {len(self._episodes)} were started by reset"
            )
