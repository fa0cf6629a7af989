"""Two-sample tests: are these the same distribution, and if not, by how much do they differ?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp, t

PROJECTIONS = 6
"""Random directions, and as many principal ones, that are tested by Kolmogorov-Smirnov."""

KINDS = ("ks", "mean", "spread", "energy")
"""The kinds of tests; each has the same share of the significance."""

PERMUTATIONS = 1999
_ROUNDING = 1e-5  # principal directions this much narrower than the widest are float32's noise
_BLOCK = 500  # permutations judged at once
_ENOUGH = 20  # a permutation test may stop after so many statistics as large as the observed one


@dataclass(frozen=True)
class Difference:
    """How far two samples are apart; sampling noise alone keeps all of these from being zero.

    Attributes:
        mean_shift: Largest difference of a coordinate's means, in its standard deviations.
        variance_ratio: Total variance of the second over that of the first.
        covariance: Frobenius norm of the difference of the covariances over that of the first.
        energy: Energy distance over twice the mean distance between the samples, in [0, 1]
            (Székely & Rizzo 2013, J. Stat. Plan. Inference 143, 1249-1272).
        ks: Largest Kolmogorov-Smirnov statistic of the projections.
    """

    mean_shift: float
    variance_ratio: float
    covariance: float
    energy: float
    ks: float


@dataclass(frozen=True)
class TwoSample:
    """The tests of "both samples are of one distribution".

    Attributes:
        ks: Kolmogorov-Smirnov's p-value for each projection by its name: random directions,
            principal directions, and the distance from the centre (``radius``).
        mean: p-value of equal means: Welch's t for each principal direction, Bonferroni.
        spread: The same for squared deviations from the centre: of equal variances.
        energy: p-value of the energy distance, by permutation.
        difference: How far they are apart.
    """

    ks: Mapping[str, float]
    mean: float
    spread: float
    energy: float
    difference: Difference

    @property
    def p_values(self) -> dict[str, float]:
        """One p-value for each kind of test."""
        ks = min(1.0, min(self.ks.values()) * len(self.ks))
        return dict(zip(KINDS, (ks, self.mean, self.spread, self.energy), strict=True))

    @property
    def p_value(self) -> float:
        """The p-value of all tests together (Bonferroni)."""
        return min(1.0, min(self.p_values.values()) * len(KINDS))


def compare(
    x: NDArray,
    y: NDArray,
    *,
    projections: int = PROJECTIONS,
    energy_size: int = 500,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> TwoSample:
    """Test whether two samples are of one distribution.

    Directions and centre are those of both samples together, which depend on neither's label.

    Args:
        x: The reference, ``(N, D)``.
        y: The other sample, ``(M, D)``, independent of it.
        projections: Random directions, and principal ones.
        energy_size: Rows of each, from the first on, that the energy distance is taken of.
        permutations: Of the energy distance, whose p-value is never below 1 / (1 + permutations).
        seed: Of random directions and permutations.
    """
    rng = np.random.default_rng(seed)
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    centre, principal = principal_directions(np.concatenate([x, y]))
    x, y = x - centre, y - centre
    directions = {
        f"random {i + 1}": d for i, d in enumerate(rng.standard_normal((projections, x.shape[1])))
    } | {f"principal {i + 1}": d for i, d in enumerate(principal[:projections])}
    pairs = {name: (x @ d, y @ d) for name, d in directions.items()}
    pairs["radius"] = (np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
    tests = {name: ks_2samp(*pair) for name, pair in pairs.items()}
    along_x, along_y = x @ principal.T, y @ principal.T
    energy, energy_p = _energy(x[:energy_size], y[:energy_size], rng, permutations)
    return TwoSample(
        {name: float(test.pvalue) for name, test in tests.items()},
        _equal_means(along_x, along_y),
        _equal_means(along_x**2, along_y**2),
        energy_p,
        _difference(x, y, energy, max(float(test.statistic) for test in tests.values())),
    )


def same_distribution(
    x: NDArray,
    y: NDArray,
    *,
    projections: int = PROJECTIONS,
    energy_size: int = 500,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> float:
    """The p-value of ``compare``, corrected for all of its tests."""
    return compare(
        x,
        y,
        projections=projections,
        energy_size=energy_size,
        permutations=permutations,
        seed=seed,
    ).p_value


def principal_directions(x: NDArray) -> tuple[NDArray, NDArray]:
    """The mean ``(D,)`` and the principal directions ``(R, D)``, widest first; at least one."""
    centre = x.mean(0)
    _, width, directions = np.linalg.svd(x - centre, full_matrices=False)
    return centre, directions[: max(1, int((width > _ROUNDING * width[0]).sum()))]


def welch(x: NDArray, y: NDArray, axis: int = 0) -> NDArray:
    """Welch's statistic of a difference of means; infinite where constants differ."""
    gap = np.abs(x.mean(axis) - y.mean(axis))
    error = np.sqrt(x.var(axis) / (x.shape[axis] - 1) + y.var(axis) / (y.shape[axis] - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0, 0.0, gap / error)


def _equal_means(x: NDArray, y: NDArray) -> float:
    degrees = len(x) + len(y) - 2
    return min(1.0, float(2 * t.sf(welch(x, y).max(), degrees)) * x.shape[1])


def _energy(
    x: NDArray, y: NDArray, rng: np.random.Generator, permutations: int
) -> tuple[float, float]:
    """The energy distance as a part of its largest value, and its p-value by permutation.

    Székely & Rizzo (2013): twice the mean cross distance less the inner ones. Permuting stops early
    where the answer is plain, which leaves the p-value valid (Besag & Clifford 1991, Biometrika 78,
    301-304).
    """
    pooled = np.concatenate([x, y])
    distances = cdist(pooled, pooled)
    n, m = len(x), len(y)
    labels = np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])

    def statistics(signs: NDArray) -> NDArray:
        return -np.einsum("ij,ij->i", signs @ distances, signs)

    observed = float(statistics(labels[None])[0])
    apart = 2 * float(distances[:n, n:].mean())
    coefficient = max(0.0, observed / apart) if apart else 0.0
    done = exceeded = 0
    while done < permutations:
        count = min(_BLOCK, permutations - done)
        signs = rng.permuted(np.tile(labels, (count, 1)), axis=1)
        # Ties, which rounding would break either way, count as exceeding.
        larger = np.flatnonzero(statistics(signs) >= observed - 1e-9 * apart)
        if exceeded + len(larger) >= _ENOUGH:
            return coefficient, _ENOUGH / (done + int(larger[_ENOUGH - exceeded - 1]) + 1)
        done, exceeded = done + count, exceeded + len(larger)
    return coefficient, (1 + exceeded) / (1 + permutations)


def _difference(x: NDArray, y: NDArray, energy: float, ks: float) -> Difference:
    shift, width = np.abs(x.mean(0) - y.mean(0)), np.sqrt((x.var(0) + y.var(0)) / 2)
    before, after = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    total, norm = float(np.trace(before)), float(np.linalg.norm(before))
    return Difference(
        float(np.divide(shift, width, out=np.zeros_like(shift), where=width > 0).max()),
        float(np.trace(after)) / total if total else math.nan,
        float(np.linalg.norm(after - before)) / norm if norm else math.nan,
        energy,
        ks,
    )
