"""One figure a task: score, network cost and planning time of every sampler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, ScalarFormatter

from eval.episodes import PlannedChunk
from eval.summary import Row

_COLORS = ("#6b7280", "#d97706", "#0f766e", "#7c3aed", "#be123c", "#1d4ed8", "#65a30d")
_LABELS = {"reward": "mean of the maximal reward", "success": "success rate"}
_GREY = "#374151"


def plot(path: Path, title: str, rows: Sequence[Row], planned: Sequence[PlannedChunk]) -> None:
    """Draw a task's figure.

    Args:
        path: The PNG to write.
        title: The task's name for people.
        rows: The task's rows.
        planned: Planning times of the same samplers; may be empty.
    """
    panels = 3 if planned else 2
    figure = Figure(figsize=(4.6 * panels, 1.6 + 0.55 * len(rows)), dpi=150, layout="constrained")
    axes = figure.subplots(1, panels, sharey=True)
    colors = [_COLORS[index % len(_COLORS)] for index in range(len(rows))]
    _score(axes[0], rows, colors)
    _cost(axes[1], rows, colors)
    if planned:
        _latency(axes[2], rows, planned, colors)
    axes[0].set_yticks(range(len(rows)), [row.sampler for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    for panel in axes:
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color="#e5e7eb", linewidth=0.8)
        panel.set_axisbelow(True)
    counts = [row.episodes for row in rows]
    episodes = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    figure.suptitle(f"{title}: {episodes} episodes a sampler", color=_GREY)
    figure.savefig(path)


def _score(axes: Axes, rows: Sequence[Row], colors: Sequence[str]) -> None:
    for y, (row, color) in enumerate(zip(rows, colors, strict=True)):
        score = row.score
        axes.plot([score.low, score.high], [y, y], color=color, linewidth=2.5)
        axes.plot(score.value, y, "o", color=color, markersize=8)
        _note(axes, score.value, y, f"{score.value:.3f}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"{_LABELS[rows[0].metric]}, 95 % interval")


def _cost(axes: Axes, rows: Sequence[Row], colors: Sequence[str]) -> None:
    for y, (row, color) in enumerate(zip(rows, colors, strict=True)):
        axes.barh(y - 0.16, row.calls_per_chunk, 0.3, color=color)
        axes.barh(y + 0.16, row.evaluations_per_chunk, 0.3, color=color, alpha=0.35)
        for offset, value, unit in (
            (-0.16, row.calls_per_chunk, "calls"),
            (0.16, row.evaluations_per_chunk, "evaluations"),
        ):
            axes.text(
                value, y + offset, f" {value:.3g} {unit}", va="center", fontsize=8, color=_GREY
            )
    most = max(max(row.calls_per_chunk, row.evaluations_per_chunk) for row in rows)
    axes.set_xlim(0, 1.35 * most)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("network calls in sequence, and evaluations, a chunk")


def _latency(
    axes: Axes, rows: Sequence[Row], planned: Sequence[PlannedChunk], colors: Sequence[str]
) -> None:
    jitter = np.random.default_rng(0)
    for y, (row, color) in enumerate(zip(rows, colors, strict=True)):
        times = [1e3 * chunk.seconds for chunk in planned if chunk.sampler == row.sampler]
        spread = y + jitter.uniform(-0.18, 0.18, len(times))
        axes.plot(times, spread, ".", color=color, alpha=0.45, markersize=6, markeredgewidth=0)
        median = float(np.median(times))
        axes.plot([median, median], [y - 0.26, y + 0.26], color=color, linewidth=2.5)
        _note(axes, median, y, f"{median:.0f} ms", lift=14)
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
    axes.set_xlabel("planning time of one robot, ms a chunk; line: median")


def _note(axes: Axes, x: float, y: float, text: str, lift: int = 6) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(0, lift),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8,
        color=_GREY,
    )
