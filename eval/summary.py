"""From episodes to the figures of a report."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from eval import statistics
from eval.episodes import Episode, Experiment, Outcome
from eval.planning_time import Latency
from eval.statistics import Estimate


@dataclass(frozen=True)
class Row:
    """One sampler's figures on one task.

    Attributes:
        task: The task.
        sampler: The sampler.
        metric: What `score` is the mean of, "reward" (an episode's largest) or "success".
        episodes: How many episodes ran to their end.
        score: Mean over the episodes.
        difference: Score minus the baseline's on the same seeds and noise; None at the baseline.
        sign_test: p-value of the sign test on that difference, over the seeds.
        calls_per_chunk: Sequential network calls, mean over all chunks of the episodes.
        evaluations_per_chunk: Rows through the network, mean over all chunks.
        algorithmic_speedup: Steps of the reverse process over calls.
        latency: Planning time of one robot, if it was measured.
    """

    task: str
    sampler: str
    metric: str
    episodes: int
    score: Estimate
    difference: Estimate | None
    sign_test: float | None
    calls_per_chunk: float
    evaluations_per_chunk: float
    algorithmic_speedup: float
    latency: Latency | None


@dataclass(frozen=True)
class Missing:
    """Episodes of one sampler on one task that were asked for and have no result.

    Attributes:
        task: The task.
        sampler: The sampler.
        episodes: How many are missing.
        asked: Of how many.
        failed: How many of the missing ones were tried and failed.
    """

    task: str
    sampler: str
    episodes: int
    asked: int
    failed: int


def missing(
    task: str,
    asked: Iterable[Episode],
    outcomes: Container[Episode],
    failed: Container[Episode],
) -> list[Missing]:
    """What each sampler lacks, for those that lack something.

    Args:
        task: The task.
        asked: All episodes that were asked for.
        outcomes: Those that ran to their end.
        failed: Those that an exception has ended, perhaps before they were run again.
    """
    by_sampler: dict[str, list[Episode]] = {}
    for episode in asked:
        by_sampler.setdefault(episode.sampler, []).append(episode)
    gaps = []
    for sampler, episodes in by_sampler.items():
        left = [episode for episode in episodes if episode not in outcomes]
        if left:
            tried = sum(episode in failed for episode in left)
            gaps.append(Missing(task, sampler, len(left), len(episodes), tried))
    return gaps


def summarize(
    experiment: Experiment,
    metric: str,
    samplers: Sequence[str],
    outcomes: Iterable[Outcome],
    latencies: Mapping[str, Latency],
) -> list[Row]:
    """The rows of one task.

    Args:
        experiment: What was run.
        metric: The task's metric.
        samplers: Their order; the first is the baseline.
        outcomes: Episodes of any sampler.
        latencies: Planning time by sampler; may be empty.

    Returns:
        A row for each sampler of which an episode ran to its end.
    """
    by_sampler: dict[str, list[Outcome]] = {sampler: [] for sampler in samplers}
    for outcome in outcomes:
        by_sampler[outcome.episode.sampler].append(outcome)
    scores = {
        sampler: {(o.episode.seed, o.episode.repeat): o.score(metric) for o in ended}
        for sampler, ended in by_sampler.items()
    }
    rows = []
    for sampler, ended in by_sampler.items():
        if not ended:
            continue
        own, baseline = scores[sampler], scores[samplers[0]]
        paired = sampler != samplers[0] and bool(own.keys() & baseline.keys())
        if metric == "reward":
            estimate, compare = statistics.mean_score, statistics.paired_difference
        else:
            estimate, compare = statistics.success_rate, statistics.paired_success_difference
        chunks = sum(outcome.chunks for outcome in ended)
        calls = sum(outcome.calls for outcome in ended)
        rows.append(
            Row(
                task=experiment.task,
                sampler=sampler,
                metric=metric,
                episodes=len(ended),
                score=estimate(own),
                difference=compare(own, baseline) if paired else None,
                sign_test=statistics.sign_test(own, baseline) if paired else None,
                calls_per_chunk=calls / chunks,
                evaluations_per_chunk=sum(outcome.evaluations for outcome in ended) / chunks,
                algorithmic_speedup=experiment.num_steps * chunks / calls,
                latency=latencies.get(sampler),
            )
        )
    return rows
