"""Estimates with 95 % intervals.

The seeds are the independent units: repeats of a seed start from the same state and agree more
than chance, so every interval is taken over the means of the seeds, not over single episodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from statsmodels.stats.proportion import proportion_confint

Scores = Mapping[tuple[int, int], float]
"""An episode's score by (seed, repeat)."""

_ALPHA = 0.05
_Z2 = stats.norm.ppf(1 - _ALPHA / 2) ** 2
_RESAMPLES = 9999


@dataclass(frozen=True)
class Estimate:
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def success_rate(scores: Scores) -> Estimate:
    """A proportion with Wilson's interval, for scores 0 and 1.

    With several repeats the interval is Wilson's for the effective number of episodes (Korn and
    Graubard 1998; Franco et al. 2019): so many independent ones would estimate the proportion as
    well. It lies between the number of seeds, if repeats of a seed always agree, and that of
    episodes. With one repeat it is Wilson's interval itself.
    """
    value = float(_seed_means(scores).mean())
    count = _effective_count(scores, value * (1 - value))
    low, high = proportion_confint(value * count, count, alpha=_ALPHA, method="wilson")
    return Estimate(value, float(low), float(high))


def mean_score(scores: Scores) -> Estimate:
    """A mean of scores in [0, 1] with a bootstrap interval (BCa) over the seeds."""
    values = _seed_means(scores)
    if np.ptp(values) == 0:
        return _all_the_same(values, lowest=0.0)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=1 - _ALPHA,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(float(values.mean()), float(interval.low), float(interval.high))


def paired_difference(scores: Scores, baseline: Scores) -> Estimate:
    """The mean of score minus baseline's on the same (seed, repeat), with Student's t interval.

    Only episodes that both have run count. Two samplers end most episodes alike and a few quite
    differently. A bootstrap of few seeds has seen too few of the large differences, and its
    interval is too narrow (tests/eval/test_statistics.py).

    Args:
        scores: Scores in [0, 1].
        baseline: Scores in [0, 1].
    """
    values = _seed_means(_differences(scores, baseline))
    if np.ptp(values) == 0:
        return _all_the_same(values, lowest=-1.0)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(1 - _ALPHA)
    return Estimate(float(values.mean()), float(max(low, -1.0)), float(min(high, 1.0)))


def paired_success_difference(scores: Scores, baseline: Scores) -> Estimate:
    """A success rate minus the baseline's on the same (seed, repeat), with Tango's score interval.

    Only episodes that both have run count. A bootstrap would be too narrow here: of three pairs in
    which they differ, all won by one side, it makes an interval that excludes 0, and the sign test
    says p = 0.25. With several repeats the interval is for the effective number of pairs, as in
    ``success_rate``. Source: Tango (1998), Statistics in Medicine 17, 891-908.

    Args:
        scores: Scores 0 and 1.
        baseline: Scores 0 and 1.
    """
    differences = _differences(scores, baseline)
    values = np.array(list(differences.values()))
    wins, losses = float((values > 0).mean()), float((values < 0).mean())
    value = wins - losses
    count = _effective_count(differences, wins + losses - value**2)

    def excess(truth: float) -> float:
        """How far a true difference is beyond what the score test bears."""
        # The likeliest share of losses if that is the difference.
        half = -(wins + losses) + (2 - value) * truth
        root = np.sqrt(max(half**2 + 8 * losses * truth * (1 - truth), 0.0))
        loss = max((root - half) / 4, 0.0)
        variance = max(2 * loss + truth * (1 - truth), 0.0)
        return float(count * (value - truth) ** 2 - _Z2 * variance)

    # The estimate itself is within, and the ends are not; where no pair differs, it is a double
    # zero, from which the search must start apart.
    apart = 1e-9
    low = optimize.brentq(excess, -1.0, max(value - apart, -1.0))
    high = optimize.brentq(excess, min(value + apart, 1.0), 1.0)
    return Estimate(value, float(low), float(high))


def sign_test(scores: Scores, baseline: Scores) -> float:
    """Two-sided p-value that neither side wins more seeds; ties do not count.

    For successes with one repeat this is McNemar's exact test.
    """
    means = _seed_means(_differences(scores, baseline))
    wins, losses = int((means > 0).sum()), int((means < 0).sum())
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses).pvalue)


def _seed_means(scores: Scores) -> NDArray[np.float64]:
    by_seed = defaultdict(list)
    for (seed, _), score in sorted(scores.items()):
        by_seed[seed].append(score)
    return np.array([np.mean(values) for values in by_seed.values()])


def _differences(scores: Scores, baseline: Scores) -> dict[tuple[int, int], float]:
    return {key: scores[key] - baseline[key] for key in scores.keys() & baseline.keys()}


def _effective_count(scores: Scores, variance: float) -> float:
    """How many independent episodes would tell as much as these do of their mean.

    Args:
        scores: By (seed, repeat).
        variance: That of one episode's score.
    """
    means = _seed_means(scores)
    seeds = len(means)
    if seeds > 1 and (observed := means.var(ddof=1) / seeds) > 0:
        return float(min(max(variance / observed, seeds), len(scores)))
    return seeds


def _all_the_same(values: NDArray[np.float64], lowest: float) -> Estimate:
    """The mean of independent values in [lowest, 1] of which none differs.

    Their spread would call them certain. By Wilson's bound for none in n, another seed gives
    something else with a probability of at most p.
    """
    mean = float(values.mean())
    p = float(_Z2 / (len(values) + _Z2))
    return Estimate(mean, (1 - p) * mean + p * lowest, (1 - p) * mean + p)
