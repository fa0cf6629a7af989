"""Chunks to compare: many of each sampler, in the same few situations, with noise of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from asd_policy.policies import Planner, Policy
from asd_policy.sampling import ChunkNoise, Sampler, SampleResult
from eval.errors import RequestError
from eval.recorded import Source
from eval.situations import Situations, record

MOST_SAMPLES = 1 << 20
"""Repeats of a seed that one stream has; the first block is that of the episodes."""

_BATCH = 64
_CHUNKS = (2, 5, 1, 8)
"""At which chunk of its episode an observation is taken: early and late ones, never the first."""


def observe(policy: Policy, episodes: Source, first_seed: int, count: int) -> Situations:
    """Situations from as many episodes, each with a chunk planned before it.

    Raises:
        RequestError: If episodes end before they have planned twice.
    """
    found: list[Situations] = []
    # Recorded episodes are played again after the last, and are not counted twice.
    most = 2 * count + 10 if episodes.lengths is None else len(episodes.lengths)
    for seed in range(first_seed, first_seed + most):
        chunk = _CHUNKS[len(found) % len(_CHUNKS)]
        episode = record(policy, episodes.make_env, seed, chunk + 1, episodes.max_steps)
        # An episode that ends sooner is followed by the next one's.
        rows = np.flatnonzero((episode.seed == seed) & (episode.chunk > 0))
        if len(rows):
            found.append(Situations(**{k: v[rows[-1:]] for k, v in vars(episode).items()}))
        if len(found) == count:
            return Situations(
                **{k: np.concatenate([vars(one)[k] for one in found]) for k in vars(found[0])}
            )
    raise RequestError(
        f"observations: expected {count}, and from seed {first_seed} on only {len(found)} episodes "
        "plan more than once: ask for fewer, or another first_seed"
    )


@dataclass(frozen=True, eq=False)
class Drawn:
    """Chunks of a sampler: normalised, ``(situations, samples, Tp * planned_dim)``; mean cost."""

    chunks: NDArray[np.float32]
    calls: float
    evaluations: float


def draw(
    planner: Planner,
    situations: Situations,
    sampler: Sampler,
    samples: int,
    stream: int,
    progress: tqdm,
) -> Drawn:
    """Draw chunks in every situation, with noise that no other stream has."""
    chunks, calls, evaluations = [], 0, 0
    for row in range(len(situations)):
        for start in range(0, samples, _BATCH):
            repeats = range(start, min(start + _BATCH, samples))
            result = draw_at(
                planner, situations, row, sampler, [stream * MOST_SAMPLES + r for r in repeats]
            )
            chunks.append(result.x.flatten(1).cpu().numpy())
            calls += sum(result.calls)
            evaluations += sum(result.evaluations)
            progress.update(len(repeats))
    count = len(situations) * samples
    shape = (len(situations), samples, -1)
    return Drawn(np.concatenate(chunks).reshape(shape), calls / count, evaluations / count)


def draw_at(
    planner: Planner, situations: Situations, row: int, sampler: Sampler, repeats: Sequence[int]
) -> SampleResult:
    """Chunks in one situation, one for each repeat of its noise."""
    steps, count = planner.chain.num_steps, len(repeats)
    noise = ChunkNoise.stack(
        [situations.noise([row], steps, planner.chunk_shape, repeat) for repeat in repeats]
    )
    previous = [chunk.to(planner.device) for chunk in situations.known([row]) if chunk is not None]
    history = situations.history[[row] * count]
    return planner.plan(history, noise, sampler, previous * count).result
