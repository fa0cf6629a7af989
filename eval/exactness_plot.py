"""One figure of a test of exactness: chunks along DDPM's first principal direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eval.exactness_verdict import Comparison
from eval.two_sample import principal_directions

_GREY, _EXACT, _APPROXIMATE = "#9ca3af", "#0f766e", "#d97706"
_MOST_COLUMNS = 4


def plot(
    path: Path,
    situations: Sequence[tuple[int, int]],
    comparisons: Sequence[Comparison],
    reference: NDArray[np.float32],
    drawn: Mapping[str, NDArray[np.float32]],
) -> None:
    """Draw a row of histograms for each sampler, a column for each of the first observations.

    Args:
        path: The PNG to write.
        situations: Seed and chunk of each observation.
        comparisons: The samplers.
        reference: DDPM's chunks, ``(observations, samples, D)``.
        drawn: The samplers' chunks.
    """
    columns, rows = min(_MOST_COLUMNS, len(situations)), len(comparisons)
    samples = reference.shape[1]
    size = (1.6 + 2.4 * columns, 0.9 + 1.15 * rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, sharex="col", squeeze=False)
    for column in range(columns):
        centre, principal = principal_directions(reference[column])
        expected = (reference[column] - centre) @ principal[0]
        along = {k: (v[column] - centre) @ principal[0] for k, v in drawn.items()}
        low, high = np.percentile(np.concatenate([expected, *along.values()]), [0.2, 99.8])
        bins = np.linspace(low, max(high, low + 1e-6), 1 + min(40, int(4 * samples ** (1 / 3))))
        for row, comparison in enumerate(comparisons):
            panel, name = axes[row, column], comparison.sampler
            color = _EXACT if comparison.exact else _APPROXIMATE
            panel.hist(expected, bins, density=True, color=_GREY, alpha=0.6)
            panel.hist(along[name], bins, density=True, histtype="step", color=color, linewidth=1.4)
            panel.set_yticks([])
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.set_title(f"p = {comparison.tests[column].p_value:.2g}", fontsize=7, pad=1)
            panel.tick_params(labelsize=7)
            if column == 0:
                panel.set_ylabel(name, rotation=0, ha="right", va="center", color=color)
        seed, chunk = situations[column]
        axes[-1, column].set_xlabel(f"seed {seed}, chunk {chunk}", fontsize=8)
    figure.suptitle(
        f"{samples} chunks along DDPM's first principal direction; grey: DDPM", fontsize=9
    )
    figure.savefig(path)
