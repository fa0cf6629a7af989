"""What a test of exactness says of one sampler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.two_sample import TwoSample

CONTROL = "ddpm (again)"
"""A second sample of the reference, which must pass like any exact sampler."""


@dataclass(frozen=True)
class Comparison:
    """A sampler against DDPM.

    Attributes:
        sampler: Its label.
        exact: Whether it has to have DDPM's distribution.
        tests: One for each observation.
        calls: Sequential network calls, mean a chunk.
        evaluations: Rows through the network, mean a chunk.
    """

    sampler: str
    exact: bool
    tests: tuple[TwoSample, ...]
    calls: float
    evaluations: float

    @property
    def p_value(self) -> float:
        """That all observations' samples are of DDPM's distributions (Bonferroni)."""
        return min(1.0, min(test.p_value for test in self.tests) * len(self.tests))

    @property
    def summary(self) -> dict[str, float]:
        """How far it is from DDPM: the largest shift and variance ratio, means of the others."""
        differences = [test.difference for test in self.tests]
        ratios = [difference.variance_ratio for difference in differences]
        with np.errstate(divide="ignore"):
            furthest = int(np.abs(np.log(ratios)).argmax())
        return {
            "mean_shift": max(difference.mean_shift for difference in differences),
            "variance_ratio": ratios[furthest],
            "covariance": float(np.mean([difference.covariance for difference in differences])),
            "energy": float(np.mean([difference.energy for difference in differences])),
            "ks": float(np.mean([difference.ks for difference in differences])),
        }

    def verdict(self, significance: float) -> str:
        """What the tests say."""
        same = self.p_value >= significance
        if self.exact:
            return "passes" if same else "FAILS"
        return "not told apart at this size" if same else "differs"
