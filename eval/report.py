"""The report of an evaluation: one table, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from eval import markdown
from eval.files import write_text
from eval.provenance import DECISIVE
from eval.statistics import Estimate
from eval.summary import Missing, Row

_METRICS = {"reward": "max. reward", "success": "success"}
_NOTES = """\
Brackets are 95 % intervals over the seeds, the independent units: Wilson's for success and Tango's
for its differences (with several repeats, for the effective number of episodes), bootstrap (BCa)
for the mean of the maximal reward and Student's t for its differences. Differences are paired: same
initial state, same noise. Calls are sequential network calls, evaluations are rows through the
network, both means over all chunks of the episodes; speedup is the number of steps of the reverse
process ({steps}) over calls. Times are of planning for one robot, one sampler after the other at
the same observations; their speedup is the median over the chunks of {baseline}'s time over the
sampler's."""
# Success ends an episode, so that those which end first are the better ones.
_PARTIAL = """\
Means over the episodes that there are lean towards success where a run is under way, and are not to
be compared between samplers that lack different ones. A difference is over the episodes that both
samplers have: not that of the means, where one has fewer."""


@dataclass(frozen=True)
class Report:
    """All that an evaluation found.

    Attributes:
        command: The command that made it.
        baseline: The sampler that the others are compared with.
        rows: The figures.
        missing: The episodes that were asked for and have no result.
        problems: What else went wrong, in words.
        steps: Number of steps of each task's reverse process.
        provenance: What the figures were made with; its commit is that of this report, its machine
            that on which planning was timed.
        commits: Those at which each task's episodes ran, stored ones too.
        machines: Where they ran, in words.
    """

    command: str
    baseline: str
    rows: Sequence[Row]
    missing: Sequence[Missing]
    problems: Sequence[str]
    steps: Mapping[str, int]
    provenance: Mapping[str, str]
    commits: Mapping[str, Sequence[str]]
    machines: Mapping[str, Sequence[str]]

    def text(self) -> str:
        """The table, and what it lacks, for a terminal."""
        return "\n\n".join([table(self.rows, self.baseline), *self._lacks()])

    def write(self, folder: Path) -> None:
        """Write `results.md` and `results.json`."""
        episodes = ", ".join(f"{row.task} {row.sampler} {row.episodes}" for row in self.rows)
        counts = ", ".join(f"{task} {count}" for task, count in self.steps.items())
        notes = _NOTES.format(steps=counts, baseline=self.baseline)
        made_with = ", ".join(f"{k} {v}" for k, v in self.provenance.items() if k in DECISIVE)
        ran_at = "; ".join(f"{task} {', '.join(at)}" for task, at in self.commits.items())
        write_text(
            folder / "results.md",
            f"# Results\n\n```\n{self.command}\n```\n\n{self.text()}\n\n{notes}\n\n"
            f"Episodes: {episodes}.\n\nMade with: {made_with}.\n\n"
            f"The episodes ran on: {self._ran_on()}.\n\n"
            f"The episodes ran at commit: {ran_at}. Reported at: {self.provenance['commit']}.\n",
        )
        content = {
            "command": self.command,
            "provenance": dict(self.provenance),
            "commits": {task: list(at) for task, at in self.commits.items()},
            "machines": {task: list(on) for task, on in self.machines.items()},
            "rows": [asdict(row) for row in self.rows],
            "missing": [asdict(gap) for gap in self.missing],
            "problems": list(self.problems),
        }
        write_text(
            folder / "results.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        )

    def _ran_on(self) -> str:
        """Each machine, and its tasks where there are several."""
        tasks: dict[str, list[str]] = {}
        for task, machines in self.machines.items():
            for machine in machines:
                tasks.setdefault(machine, []).append(task)
        if len(tasks) == 1:
            return next(iter(tasks))
        return "; ".join(f"{', '.join(those)}: {machine}" for machine, those in tasks.items())

    def _lacks(self) -> list[str]:
        lines = [f"{problem}." for problem in self.problems]
        if self.missing:
            gaps = "; ".join(
                f"{gap.task} {gap.sampler} {gap.episodes} of {gap.asked} ({gap.failed} failed)"
                for gap in self.missing
            )
            lines.insert(0, f"Missing: {gaps}. {_PARTIAL}")
        return lines


def table(rows: Sequence[Row], baseline: str) -> str:
    """The rows as a Markdown table whose columns line up in a terminal too."""
    header = [
        "task",
        "sampler",
        "metric",
        "mean [95 %]",
        f"minus {baseline} [95 %]",
        "calls/chunk",
        "evals/chunk",
        "speedup",
        "ms p50",
        "ms p95",
        "time speedup",
    ]
    return markdown.table([header, *map(_cells, rows)], left=3)


def _cells(row: Row) -> list[str]:
    latency = row.latency
    return [
        row.task,
        row.sampler,
        _METRICS[row.metric],
        _with_interval(row.score, ".3f"),
        _with_interval(row.difference, "+.3f") if row.difference else "",
        f"{row.calls_per_chunk:.1f}",
        f"{row.evaluations_per_chunk:.0f}",
        f"{row.algorithmic_speedup:.1f}x",
        f"{latency.p50:.0f}" if latency else "",
        f"{latency.p95:.0f}" if latency else "",
        f"{latency.speedup:.1f}x" if latency else "",
    ]


def _with_interval(estimate: Estimate, form: str) -> str:
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
