"""What the two-sample tests would have seen: the smallest differences that they mostly detect."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstwo, t

from eval.two_sample import KINDS, PROJECTIONS, principal_directions, welch

POWER = 0.8
_TRIALS = 200
_HALVINGS = 7


@dataclass(frozen=True)
class Detectable:
    """The smallest differences that are detected with a probability of 80 %.

    Attributes:
        shift: Of the mean along the first principal direction, in standard deviations of it.
        spread: Of all deviations from the centre, as a part of them: 0.1 is 10 % wider.
    """

    shift: float
    spread: float


def detectable(
    sample: NDArray, size: int, significance: float, seed: int = 0, trials: int = _TRIALS
) -> Detectable:
    """Estimate by bootstrap what a comparison of two samples of a size would have seen.

    Both samples of a trial are drawn from one, with replacement, and one of them is changed. It
    counts as detected where a Kolmogorov-Smirnov or moment test rejects at the level that
    ``two_sample.compare`` leaves to it, along the first principal direction or, for the spread, on
    the radius. The tests that are left out (other directions, the energy distance) can only detect
    more, so that the figures err towards the large.

    Args:
        sample: The reference, ``(N, D)``.
        size: Rows of each of the samples compared.
        significance: Of a whole comparison.
        seed: Of the bootstrap.
        trials: Pairs of samples.
    """
    rng = np.random.default_rng(seed)
    centre, principal = principal_directions(np.asarray(sample, dtype=float))
    along = (sample - centre) @ principal[0]
    along = along / along.std() if along.std() > 0 else along
    radius = np.linalg.norm(sample - centre, axis=1)
    rows_x, rows_y = rng.integers(len(sample), size=(2, trials, size))
    limits = _Limits.at(significance, size, len(principal))

    def shift_seen(effect: float) -> NDArray:
        return limits.reject(along[rows_x], along[rows_y] + effect)

    def spread_seen(effect: float) -> NDArray:
        seen = limits.reject(along[rows_x], along[rows_y] * (1 + effect))
        return seen | limits.reject_ks(radius[rows_x], radius[rows_y] * (1 + effect))

    return Detectable(_smallest(shift_seen), _smallest(spread_seen))


@dataclass(frozen=True)
class _Limits:
    """Statistics beyond which a single test rejects."""

    ks: float
    moment: float

    @classmethod
    def at(cls, significance: float, size: int, directions: int) -> _Limits:
        share = significance / len(KINDS)
        tests = PROJECTIONS + min(PROJECTIONS, directions) + 1
        return cls(
            float(kstwo.isf(share / tests, round(size / 2))),
            float(t.isf(share / directions / 2, 2 * size - 2)),
        )

    def reject(self, x: NDArray, y: NDArray) -> NDArray:
        """Whether the tests along a direction reject each trial, ``(T, n)`` each."""
        centre = (x.mean(1) + y.mean(1))[:, None] / 2
        mean = welch(x, y, axis=1)
        spread = welch((x - centre) ** 2, (y - centre) ** 2, axis=1)
        return (np.maximum(mean, spread) > self.moment) | self.reject_ks(x, y)

    def reject_ks(self, x: NDArray, y: NDArray) -> NDArray:
        """The same of Kolmogorov-Smirnov alone."""
        pooled = np.concatenate([x, y], axis=1)
        order = pooled.argsort(axis=1)
        ordered = np.take_along_axis(pooled, order, axis=1)
        gap = np.abs(np.where(order < x.shape[1], 1, -1).cumsum(axis=1)) / x.shape[1]
        # Between equal values the distribution functions have not yet made their whole step.
        whole = np.diff(ordered, axis=1, append=np.inf) > 0
        return np.where(whole, gap, 0).max(axis=1) > self.ks


def _smallest(seen: Callable[[float], NDArray]) -> float:
    """The smallest effect that is mostly seen, by doubling and halving; infinite if none is."""
    low, high = 0.0, 0.05
    while seen(high).mean() < POWER:
        low, high = high, 2 * high
        if high > 10:
            return math.inf
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if seen(middle).mean() < POWER:
            low = middle
        else:
            high = middle
    return high
