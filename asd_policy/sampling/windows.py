"""How far to draft: the windows that cost least, by dynamic programming over a chain's progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from asd_policy.errors import SamplerError
from asd_policy.sampling.chain import GaussianChain
from asd_policy.sampling.gain import Gain

EVALUATION_PRICE = 0.01
"""What a row adds to a call, in calls, where no cost has been measured: an accelerator's half-empty
batch. With it windows are the same on every machine, and so are the samples of a seed."""

_erfc = np.vectorize(math.erfc)


@dataclass(frozen=True)
class CostTable:
    """What a network call costs by its number of rows.

    Attributes:
        rows: Batch sizes that were measured, increasing from 1.
        seconds: Time of one call for each.
        round_seconds: What a round of drafting takes beside its call.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    round_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a table that does not begin with a single row or is not increasing."""
        if len(self.rows) != len(self.seconds) or len(self.rows) < 2 or self.rows[0] != 1:
            raise SamplerError("cost table: expected two or more batch sizes from 1 on")
        if any(b <= a for a, b in zip(self.rows, self.rows[1:], strict=False)):
            raise SamplerError(f"cost table: expected increasing batch sizes, got {self.rows}")
        if not (
            all(math.isfinite(s) and s > 0 for s in self.seconds) and 0 <= self.round_seconds < 60
        ):
            raise SamplerError(f"cost table: expected positive times, got {self.seconds}")

    def __call__(self, rows: NDArray) -> NDArray:
        """Seconds of calls with so many rows: interpolated, and beyond the table in proportion."""
        # More rows never cost less: a dip in the table is noise, or a kernel's whim.
        seconds = np.maximum.accumulate(self.seconds)
        beyond = np.maximum(rows / self.rows[-1], 1)
        return np.interp(rows, self.rows, seconds) * beyond


@dataclass(frozen=True)
class WindowPlan:
    """Windows for every place that a chain can be in, and what they are expected to cost.

    Attributes:
        windows: Steps to draft at position i when steps up to L have been visited, ``(K, K + 1)``
            int64 by ``[i, L + 1]``; L = -1 is a chain that knows the previous chunk alone.
        cost: Expected cost of a whole chain, in the unit of the costs.
        cold_cost: The same where no previous chunk is known.
    """

    windows: NDArray[np.int64]
    cost: float
    cold_cost: float


_LONGEST = 128
"""Rows of a window at most: without it, to plan a chain of 1000 steps takes minutes."""


def plan_windows(chain: GaussianChain, gain: Gain, cost: Sequence[float] | NDArray) -> WindowPlan:
    """Windows of least expected cost, of 128 rows at most.

    A drafted step is accepted with probability ``2 Φ(-‖D‖/2)`` (Hu et al. 2025), with ‖D‖ from the
    gain's errors.

    Args:
        chain: The reverse process.
        gain: What is known of the drafts' errors.
        cost: Cost of a call that drafts w steps of the chain, for w = 1…K, ``(K,)``.
    """
    k = chain.num_steps
    cost = np.asarray(cost, dtype=float)
    if cost.shape != (k,) or gain.num_steps != k:
        raise SamplerError(
            f"windows: expected {k} costs and a gain of {k} steps, got {cost.shape} and "
            f"{gain.num_steps}"
        )
    gap = torch.where(chain.s > 0, chain.b / chain.s, 0.0).numpy()
    error = gain.error.cpu().double().numpy()
    # value[i, L + 1]: expected cost from position i on.
    value = np.zeros((k + 1, k + 1))
    windows = np.ones((k, k + 1), dtype=np.int64)
    for i in range(k - 1, -1, -1):
        end = min(k, i + _LONGEST)
        steps, last = np.arange(i, end), np.arange(i - 1, end)
        accept = _erfc(gap[steps] * error[last + 1][:, steps] / math.sqrt(8))
        # Probability that rows 0…w - 1 all stand, and that row w is the first that does not.
        stand = np.concatenate([np.ones((len(last), 1)), accept.cumprod(1)], axis=1)
        fall = stand[:, :-1] - stand[:, 1:]
        best = np.full(len(last), np.inf)
        # A window of w commits as many steps, or as many as stand of its first w - 1 and one more.
        for w in range(1, end - i + 1):
            known = np.maximum(last, i + w - 1) + 1
            after = value[i + 1 : i + w + 1, known]
            weights = np.concatenate([fall[:, : w - 1], stand[:, w - 1 : w]], axis=1)
            total = cost[w - 1] + np.einsum("lw,wl->l", weights, after)
            better = total < best - 1e-12
            best = np.where(better, total, best)
            windows[i, last[better] + 1] = w
        value[i, last + 1] = best
    return WindowPlan(windows, float(value[0, 0]), float(cost[0] + value[1, 1]))


def priced(num_steps: int) -> NDArray:
    """Costs in calls where none were measured: a call and a little for each row, ``(K,)``."""
    return 1 + EVALUATION_PRICE * np.arange(1, num_steps + 1)
