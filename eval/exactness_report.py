"""The report of a test of exactness: a verdict for each sampler, and what the test could see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval import markdown
from eval.exactness_plot import plot
from eval.exactness_verdict import CONTROL, Comparison
from eval.files import write_text
from eval.power import POWER, Detectable

_NOTES = """\
Each sampler drew {samples} chunks at each of {count} observations, with noise of its own, and so
did sequential DDPM; "{control}" is a second, independent sample of DDPM, and shows how large
the differences of equal distributions are. p: that both are one distribution, corrected for all
tests (Kolmogorov-Smirnov on random and principal projections and on the radius; means and variances
along the principal directions; energy distance by permutation) and all observations; below
{significance:g} a sampler differs. Mean shift: the largest of any coordinate, in its standard
deviations. Variance: total, over DDPM's, where it is furthest from 1. Covariance (Frobenius) and
energy distance as parts of their size, and KS, the largest statistic: means over the observations.
Calls are sequential network calls, evaluations are rows through the network, a chunk."""


@dataclass(frozen=True, eq=False)
class Report:
    """All that a run of ``eval.exactness`` found.

    Attributes:
        command: The command that made it.
        checkpoint: The policy's folder.
        task: Its task.
        num_steps: Steps of the chain.
        samples: Chunks of each sampler at each observation.
        significance: Of each sampler's verdict.
        situations: Seed and chunk of each observation.
        calls: Of the reference, mean a chunk.
        evaluations: Of the reference, mean a chunk.
        comparisons: One for each sampler, the control first.
        power: For each observation, what the tests would have seen.
        notes: What else a reader should know.
        provenance: What it was made with.
    """

    command: str
    checkpoint: str
    task: str
    num_steps: int
    samples: int
    significance: float
    situations: Sequence[tuple[int, int]]
    calls: float
    evaluations: float
    comparisons: Sequence[Comparison]
    power: Sequence[Detectable]
    notes: Sequence[str]
    provenance: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every exact sampler, the control among them, passes."""
        return all(c.p_value >= self.significance for c in self.comparisons if c.exact)

    def text(self) -> str:
        """Table, power and conclusion, for a terminal."""
        failed = [c.sampler for c in self.comparisons if c.exact and c.p_value < self.significance]
        conclusion = "Every exact sampler passes."
        if CONTROL in failed:
            conclusion = (
                f"{CONTROL} FAILS: the reference is not what it should be, and no other verdict "
                "counts. Run again with another first_seed; if it fails again, the test is broken."
            )
        elif failed:
            conclusion = f"NOT EXACT, although it should be: {', '.join(failed)}."
        return "\n\n".join([self._table(), self._power(), *self.notes, conclusion])

    def write(
        self,
        folder: Path,
        reference: NDArray[np.float32],
        drawn: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Write ``results.md``, ``results.json`` and ``distributions.png``.

        Args:
            folder: Where to.
            reference: DDPM's chunks, ``(observations, samples, D)``.
            drawn: The samplers' chunks.
        """
        folder.mkdir(parents=True, exist_ok=True)
        about = _NOTES.format(
            samples=self.samples,
            count=len(self.situations),
            control=CONTROL,
            significance=self.significance,
        )
        parts = [
            f"# Exactness: {self.checkpoint}, {self.num_steps} steps",
            f"```\n{self.command}\n```",
            self.text(),
            about,
            "The p-value at each observation, and the kind of test that gave it:",
            self._observations(),
            "![First principal direction of the chunks](distributions.png)",
            "Made with: " + ", ".join(f"{k} {v}" for k, v in self.provenance.items()) + ".",
        ]
        write_text(folder / "results.md", "\n\n".join(parts) + "\n")
        write_text(
            folder / "results.json",
            json.dumps(self._content(), indent=2, ensure_ascii=False) + "\n",
        )
        plot(folder / "distributions.png", self.situations, self.comparisons, reference, drawn)

    def _table(self) -> str:
        header = [
            "sampler", "verdict", "p", "mean shift", "variance", "covariance", "energy", "KS",
            "calls/chunk", "evals/chunk",
        ]  # fmt: skip
        cost = [f"{self.calls:.1f}", f"{self.evaluations:.0f}"]
        rows = [["ddpm", "the reference", *[""] * 6, *cost]]
        for c in self.comparisons:
            summary = c.summary
            rows.append(
                [
                    c.sampler,
                    c.verdict(self.significance),
                    f"{c.p_value:.2g}",
                    f"{summary['mean_shift']:.2f} sd",
                    f"{summary['variance_ratio']:.3f}x",
                    f"{summary['covariance']:.3f}",
                    f"{summary['energy']:.4f}",
                    f"{summary['ks']:.3f}",
                    f"{c.calls:.1f}",
                    f"{c.evaluations:.0f}",
                ]
            )
        return markdown.table([header, *rows], left=2)

    def _observations(self) -> str:
        header = ["sampler", *(f"seed {seed}, chunk {chunk}" for seed, chunk in self.situations)]
        rows = [
            [c.sampler, *(f"{t.p_value:.2g} ({min(t.p_values, key=t.p_values.__getitem__)})"
                          for t in c.tests)]
            for c in self.comparisons
        ]  # fmt: skip
        return markdown.table([header, *rows], left=1)

    def _power(self) -> str:
        shifts, spreads = [p.shift for p in self.power], [p.spread for p in self.power]
        return (
            f"Seen with a probability of {POWER:.0%}, had it been so at one observation: a mean "
            f"shifted by {_range(shifts, '{:.2f}')} standard deviations along the first principal "
            f"direction, or deviations wider by {_range(spreads, '{:.0%}')}."
        )

    def _content(self) -> dict[str, object]:
        return {
            "command": self.command,
            "provenance": dict(self.provenance),
            "checkpoint": self.checkpoint,
            "task": self.task,
            "num_steps": self.num_steps,
            "samples": self.samples,
            "significance": self.significance,
            "passed": self.passed,
            "notes": list(self.notes),
            "reference": {"calls": self.calls, "evaluations": self.evaluations},
            "observations": [
                {"seed": seed, "chunk": chunk, "detectable": asdict(power)}
                for (seed, chunk), power in zip(self.situations, self.power, strict=True)
            ],
            "samplers": [
                {
                    "sampler": c.sampler,
                    "exact": c.exact,
                    "verdict": c.verdict(self.significance),
                    "p_value": c.p_value,
                    "summary": c.summary,
                    "calls": c.calls,
                    "evaluations": c.evaluations,
                    "tests": [
                        {"p_value": t.p_value, "p_values": t.p_values, **asdict(t)} for t in c.tests
                    ],
                }
                for c in self.comparisons
            ],
        }


def _range(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"
