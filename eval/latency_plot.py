"""One figure of latencies: every sampler's times on a log axis, and throughput by environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from eval.latency_measure import Measured
from eval.latency_summary import Row, in_ms

_COLORS = (
    "#6b7280", "#d97706", "#0f766e", "#7c3aed", "#be123c", "#1d4ed8", "#65a30d", "#0891b2",
    "#a16207", "#db2777",
)  # fmt: skip
_GREY = "#374151"


def plot(
    path: Path,
    title: str,
    measured: Measured,
    rows: Sequence[Row],
    control_hz: float,
    chunks_per_second: Mapping[str, Mapping[int, float]],
) -> None:
    """Draw it.

    Args:
        path: The PNG to write.
        title: The task's name for people.
        measured: The times.
        rows: Their summary.
        control_hz: The task's control frequency.
        chunks_per_second: By sampler and number of environments; may be empty.
    """
    labels = dict.fromkeys([*measured.samplers, *chunks_per_second])
    colors = {label: _COLORS[i % len(_COLORS)] for i, label in enumerate(labels)}
    panels = 2 if chunks_per_second else 1
    size = (2.0 + 5.2 * panels, max(3.6, 1.6 + 0.5 * len(rows)))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _times(axes[0], measured, rows, colors)
    _deadlines(axes[0], control_hz, measured.action_horizon)
    if chunks_per_second:
        _throughput(axes[1], chunks_per_second, colors)
    for panel in axes:
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.set_axisbelow(True)
    figure.suptitle(f"{title}: {rows[0].chunk.count} chunks a sampler", color=_GREY)
    figure.savefig(path)


def _times(axes: Axes, measured: Measured, rows: Sequence[Row], colors: Mapping[str, str]) -> None:
    jitter = np.random.default_rng(0)
    for y, row in enumerate(rows):
        color = colors[row.sampler]
        times = [1e3 * plan.seconds for plan in measured.plans if plan.sampler == row.sampler]
        spread = y + jitter.uniform(-0.18, 0.18, len(times))
        axes.plot(times, spread, ".", color=color, alpha=0.45, markersize=6, markeredgewidth=0)
        p50, p99 = row.chunk.p50, row.chunk.p99
        axes.plot([p50, p50], [y - 0.26, y + 0.26], color=color, linewidth=2.5)
        axes.plot([p99, p99], [y - 0.18, y + 0.18], color=color, linewidth=1.2)
        axes.annotate(
            f"{in_ms(p50)} ms",
            (p50, y),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=_GREY,
        )
    axes.set_yticks(range(len(rows)), [row.sampler for row in rows])
    axes.set_ylim(len(rows) - 0.4, -1.0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("planning time of one robot, ms a chunk; thick line: median, thin: p99")


def _deadlines(axes: Axes, control_hz: float, action_horizon: int) -> None:
    """Lines at one control period and at as many as a chunk lasts."""
    for periods in dict.fromkeys((1, action_horizon)):
        milliseconds = 1e3 * periods / control_hz
        axes.axvline(milliseconds, color=_GREY, linewidth=0.9, linestyle=":")
        axes.annotate(
            "a control period" if periods == 1 else f"{periods} periods",
            (milliseconds, -0.98),
            xytext=(3, 0),
            textcoords="offset points",
            va="top",
            fontsize=7,
            color=_GREY,
        )


def _throughput(
    axes: Axes,
    chunks_per_second: Mapping[str, Mapping[int, float]],
    colors: Mapping[str, str],
) -> None:
    for label, rates in chunks_per_second.items():
        counts = sorted(rates)
        values = [rates[count] for count in counts]
        axes.plot(counts, values, "o-", color=colors[label], label=label, linewidth=1.6)
    counts = sorted({count for rates in chunks_per_second.values() for count in rates})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_xlabel("environments planned together")
    axes.set_title("chunks a second, all environments together", fontsize=9, color=_GREY)
    axes.legend(frameon=False, fontsize=8)
