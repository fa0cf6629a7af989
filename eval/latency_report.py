"""The report of latencies: tables for people, all figures and times for programs, a picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from eval import markdown
from eval.files import write_text
from eval.latency_measure import Measured
from eval.latency_plot import plot
from eval.latency_summary import (
    REFERENCE,
    TOLERANCE,
    AutoCheck,
    Row,
    check_auto,
    in_ms,
    summarise,
    throughput,
)

_NOTES = """\
Times are wall-clock time of planning one chunk for one robot, from the raw observations to the raw
actions: {count} chunks of each sampler, in the same situations (of the policy's own episodes, where
the command names no file), with the same noise and the same previous chunk, in one process of one
thread; samplers in turns that rotate; warm-up left out; the device idle before and after. p95 and
p99 are interpolated. Jitter is p95 minus p50, sd the standard deviation. Calls are network calls in
sequence and evaluations rows through the network, means a chunk. Speed-up is the median over the
situations of {baseline}'s time over the sampler's, with a bootstrap 95 % interval over the
situations; "/ {reference}" the median of the sampler's time over {reference}'s. Outside: the part
of the time not spent in calls of the network, measured apart, the device synchronised around every
call.

Actions/s: the action horizon ({horizon}) over the mean time of a chunk, what a robot that waits for
every chunk can do at most. The task runs at {hz:g} Hz. "In a period": at least 99 % of the
chunks are planned within one control period, {period:.0f} ms, so that the robot may wait for them.
"While acting": at least 99 % within {horizon} periods, {chunk:.0f} ms, so that one can be planned
while the one before is executed. Late is the part of the chunks that would not be."""
_DEVICE_NOTE = """\
GPU MB counts tensors while a sampler plans, the weights and the buffers of other samplers' CUDA
graphs included, but not the pools in which graphs compute; "outside" is of planning call by call,
without graphs."""
_ACT_NOTES = """\
`act`: {steps} calls of Policy.act of each sampler in episodes of its own, of which one in {horizon}
plans and the others hand out an action; 1/p99 is the rate that 99 % of the calls keep up with."""
_BATCH_NOTES = """\
Chunks a second by the number of environments that are planned for together, all environments
counted; medians over {repetitions} plannings for each number. Ratios of auto are medians of the
plannings in pairs, brackets the least and the largest."""


@dataclass(frozen=True, eq=False)
class Report:
    """All that a run of ``eval.latency`` found.

    Attributes:
        command: The command that made it.
        checkpoint: The policy's folder.
        title: The task's name for people.
        control_hz: The task's control frequency.
        measured: The times of planning.
        acts: For each sampler the seconds of its calls of ``act``; may be empty.
    """

    command: str
    checkpoint: str
    title: str
    control_hz: float
    measured: Measured
    acts: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """The samplers' lines."""
        return summarise(self.measured, self.acts, self.control_hz)

    def text(self) -> str:
        """All tables, for a terminal."""
        rows = self.rows
        parts = [_planning_table(rows, self.measured), _control_table(rows)]
        if self.acts:
            parts.append(_act_table(rows))
        if self.measured.batches:
            rates = throughput(self.measured.batches)
            parts += [_throughput_table(rates), *_auto_lines(check_auto(self.measured.batches))]
        return "\n\n".join([*parts, self._memory(rows), *self._auto_costs()])

    def write(self, folder: Path) -> None:
        """Write ``results.md``, ``results.json`` and ``latency.png``."""
        folder.mkdir(parents=True, exist_ok=True)
        rows, rates = self.rows, throughput(self.measured.batches)
        measured = self.measured
        made_with = ", ".join(f"{k} {v}" for k, v in measured.provenance.items())
        parts = [
            f"# Latency: {self.checkpoint}",
            f"```\n{self.command}\n```",
            self.text(),
            self._notes(rows),
            "![Planning time of every sampler](latency.png)",
            f"Made with: {made_with}.",
        ]
        write_text(folder / "results.md", "\n\n".join(parts) + "\n")
        content = {
            "command": self.command,
            "provenance": measured.provenance,
            "checkpoint": self.checkpoint,
            "task": measured.task,
            "control_hz": self.control_hz,
            "rows": [asdict(row) for row in rows],
            "chunks_per_second": rates,
            "auto": [
                {**asdict(check), "holds": check.holds} for check in check_auto(measured.batches)
            ],
            "measured": asdict(measured),
            "acts": {sampler: list(seconds) for sampler, seconds in self.acts.items()},
        }
        write_text(
            folder / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        )
        plot(folder / "latency.png", self.title, measured, rows, self.control_hz, rates)

    def _notes(self, rows: Sequence[Row]) -> str:
        horizon, period = self.measured.action_horizon, 1e3 / self.control_hz
        parts = [
            _NOTES.format(
                count=rows[0].chunk.count,
                baseline=rows[0].sampler,
                reference=REFERENCE,
                horizon=horizon,
                hz=self.control_hz,
                period=period,
                chunk=horizon * period,
            )
        ]
        if self.acts:
            steps = len(next(iter(self.acts.values())))
            parts.append(_ACT_NOTES.format(steps=steps, horizon=horizon))
        if batches := self.measured.batches:
            counts = Counter(b.environments for b in batches if b.sampler == batches[0].sampler)
            repetitions = ", ".join(map(str, counts.values()))
            parts.append(_BATCH_NOTES.format(repetitions=repetitions))
        return "\n\n".join(parts)

    def _memory(self, rows: Sequence[Row]) -> str:
        memory = self.measured.memory
        text = (
            f"Memory of the whole process at most, planning for one robot with all samplers: "
            f"{memory['process'] / 1e6:.0f} MB, of which {memory['process_before'] / 1e6:.0f} MB "
            "before the network was loaded (Python and libraries)."
        )
        if any(row.device_memory is not None for row in rows):
            text += " " + _DEVICE_NOTE
        return text

    def _auto_costs(self) -> list[str]:
        """What `auto` windows believe of a call, and what the sequential calls say."""
        measured = self.measured
        sequential = [plan for plan in measured.plans if plan.sampler == "ddpm"]
        if not measured.call_seconds:
            return []
        line = (
            f"auto windows take a call of one row to cost {1e3 * measured.call_seconds[0]:.2f} ms"
        )
        if sequential:
            seconds = sorted(plan.seconds / plan.calls for plan in sequential)
            line += f"; ddpm took {1e3 * seconds[len(seconds) // 2]:.2f} ms a call, all told"
        return [line + "."]


def _planning_table(rows: Sequence[Row], measured: Measured) -> str:
    header = [
        "sampler", "exact", "ms p50", "p95", "p99", "max", "jitter", "sd", "calls", "evals",
        "speed-up [95 %]", f"/ {REFERENCE}", "outside",
    ]  # fmt: skip
    on_device = any(row.device_memory is not None for row in rows)
    if on_device:
        header.append("GPU MB")
    cells = [header]
    for row in rows:
        chunk, gain = row.chunk, row.speedup
        times = (chunk.p50, chunk.p95, chunk.p99, chunk.max, chunk.jitter, chunk.deviation)
        cells.append(
            [
                row.sampler,
                _yes(row.exact),
                *map(in_ms, times),
                f"{row.calls:.1f}",
                f"{row.evaluations:.0f}",
                f"{gain.value:.2f}x [{gain.low:.2f}, {gain.high:.2f}]",
                "" if row.over_reference is None else f"{row.over_reference:.2f}x",
                "" if row.outside is None else f"{row.outside:.1%}",
            ]
        )
        if on_device:
            cells[-1].append("" if row.device_memory is None else f"{row.device_memory / 1e6:.0f}")
    return markdown.table(cells, left=2)


def _control_table(rows: Sequence[Row]) -> str:
    cells = [["sampler", "actions/s", "in a period", "late", "while acting", "late"]]
    for row in rows:
        control = row.control
        cells.append(
            [
                row.sampler,
                f"{control.blocking_hz:.1f}",
                _yes(control.fits_blocking),
                f"{control.late_blocking:.0%}",
                _yes(control.fits_async),
                f"{control.late_async:.0%}",
            ]
        )
    return markdown.table(cells, left=1)


def _act_table(rows: Sequence[Row]) -> str:
    cells = [["sampler", "act ms p50", "p95", "p99", "max", "1/p99"]]
    for row in rows:
        if row.act is not None:
            times = map(in_ms, (row.act.p50, row.act.p95, row.act.p99, row.act.max))
            cells.append([row.sampler, *times, f"{row.act_hz:.1f} Hz"])
    return markdown.table(cells, left=1)


def _throughput_table(rates: Mapping[str, Mapping[int, float]]) -> str:
    counts = list(next(iter(rates.values())))
    header = ["chunks/s", *(f"{n} env" if n == 1 else f"{n} envs" for n in counts)]
    cells = [[label, *(f"{rate[n]:.3g}" for n in counts)] for label, rate in rates.items()]
    return markdown.table([header, *cells], left=1)


def _auto_lines(checks: Sequence[AutoCheck]) -> list[str]:
    lines = []
    for sampler in dict.fromkeys(check.sampler for check in checks):
        mine = [check for check in checks if check.sampler == sampler]
        each = ", ".join(
            f"{c.environments}: {c.ratio:.2f}x {c.best} ({c.low:.2f} to {c.high:.2f})" for c in mine
        )
        failed = [str(check.environments) for check in mine if not check.holds]
        verdict = f"FAILS at {', '.join(failed)}" if failed else "holds"
        lines.append(
            f"{sampler} over the better of ddpm and the best fixed window, by environments: "
            f"{each}. Never more than {TOLERANCE:.0%} below: {verdict}."
        )
    return lines


def _yes(value: bool) -> str:
    return "yes" if value else "no"
