"""What the measured times mean for a robot: percentiles, pairs, control rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from asd_policy.sampling import Sequential, Speculative, is_exact, parse_sampler
from eval.latency_measure import BatchTime, Measured
from eval.statistics import Estimate

REFERENCE = "ddim:10"
"""The usual shortcut; whatever else is measured is set against it, too."""
TOLERANCE = 0.05
"""By so much ``auto`` windows may fall short of the better of DDPM and the best fixed window."""

_MAY_BE_LATE = 0.01
_RESAMPLES = 9999


@dataclass(frozen=True)
class Distribution:
    """Times of many calls, in milliseconds.

    Attributes:
        count: How many.
        mean: Their mean.
        p50: Their median.
        p95: 95th percentile, interpolated.
        p99: 99th percentile; of fewer than a hundred calls it lies just below the longest.
        max: The longest.
        jitter: p95 minus p50.
        deviation: Standard deviation.
    """

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float
    jitter: float
    deviation: float

    @classmethod
    def of(cls, seconds: Sequence[float] | NDArray) -> Distribution:
        """Describe two or more times."""
        ms = 1e3 * np.asarray(seconds, dtype=float)
        p50, p95, p99 = (float(value) for value in np.percentile(ms, [50, 95, 99]))
        return cls(
            len(ms), float(ms.mean()), p50, p95, p99, float(ms.max()), p95 - p50,
            float(ms.std(ddof=1)),
        )  # fmt: skip


@dataclass(frozen=True)
class Control:
    """What a chunk's time lets a robot do.

    Attributes:
        blocking_hz: Actions a second when the robot waits for every chunk: the action horizon over
            the mean time of a chunk.
        fits_blocking: Whether at least 99 % of chunks are planned within one control period.
        fits_async: Whether at least 99 % are planned while the chunk before is executed, that is
            within ``action_horizon`` control periods.
        late_blocking: Part of the chunks that took longer than one control period.
        late_async: Part of the chunks that took longer than ``action_horizon`` control periods.
    """

    blocking_hz: float
    fits_blocking: bool
    fits_async: bool
    late_blocking: float
    late_async: float

    @classmethod
    def of(cls, seconds: Sequence[float] | NDArray, action_horizon: int, hz: float) -> Control:
        """Hold times of chunks against a task's control frequency."""
        times = np.asarray(seconds, dtype=float)
        blocking, during = (float((times > n / hz).mean()) for n in (1, action_horizon))
        return cls(
            blocking_hz=action_horizon / float(times.mean()),
            fits_blocking=blocking <= _MAY_BE_LATE,
            fits_async=during <= _MAY_BE_LATE,
            late_blocking=blocking,
            late_async=during,
        )


@dataclass(frozen=True)
class Row:
    """One sampler's line.

    Attributes:
        sampler: Its label.
        exact: Whether it keeps DDPM's distribution.
        chunk: Times of planning a chunk for one robot.
        calls: Network calls in sequence, mean a chunk.
        evaluations: Rows through the network, mean a chunk.
        speedup: Median over the situations of the first sampler's time over this one's.
        over_reference: Median over the situations of this one's time over ``REFERENCE``'s.
        outside: Part of the time spent outside of the network.
        device_memory: Bytes of tensors on an accelerator at most (see ``device_memory``).
        control: What that lets a robot do.
        act: Times of ``Policy.act``, if measured.
        act_hz: One over the 99th percentile of them.
    """

    sampler: str
    exact: bool
    chunk: Distribution
    calls: float
    evaluations: float
    speedup: Estimate
    over_reference: float | None
    outside: float | None
    device_memory: int | None
    control: Control
    act: Distribution | None
    act_hz: float | None


def summarise(
    measured: Measured, acts: Mapping[str, Sequence[float]], control_hz: float
) -> list[Row]:
    """A row for each sampler, in the order asked for; the first is the baseline."""
    times = {sampler: _by_situation(measured, sampler) for sampler in measured.samplers}
    baseline, reference = times[measured.samplers[0]], times.get(REFERENCE)
    rows = []
    for sampler, seconds in times.items():
        plans = [plan for plan in measured.plans if plan.sampler == sampler]
        act = Distribution.of(acts[sampler]) if sampler in acts else None
        rows.append(
            Row(
                sampler=sampler,
                exact=is_exact(parse_sampler(sampler)),
                chunk=Distribution.of(seconds),
                calls=float(np.mean([plan.calls for plan in plans])),
                evaluations=float(np.mean([plan.evaluations for plan in plans])),
                speedup=median_ratio(baseline, seconds),
                over_reference=(
                    None if reference is None else float(np.median(seconds / reference))
                ),
                outside=measured.outside.get(sampler),
                device_memory=measured.memory.get(sampler),
                control=Control.of(seconds, measured.action_horizon, control_hz),
                act=act,
                act_hz=None if act is None else 1e3 / act.p99,
            )
        )
    return rows


def median_ratio(numerator: NDArray, denominator: NDArray) -> Estimate:
    """The median of paired ratios, with a 95 % interval by resampling the pairs (percentiles)."""
    ratios = np.asarray(numerator) / np.asarray(denominator)
    value = float(np.median(ratios))
    if np.ptp(ratios) == 0:
        return Estimate(value, value, value)
    interval = stats.bootstrap(
        (ratios,),
        np.median,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def throughput(batches: Sequence[BatchTime]) -> dict[str, dict[int, float]]:
    """Chunks a second by sampler and number of environments, medians over the repetitions."""
    return {
        sampler: {count: count / float(np.median(times)) for count, times in by_count.items()}
        for sampler, by_count in _by_count(batches).items()
    }


@dataclass(frozen=True)
class AutoCheck:
    """``auto`` windows against the better of DDPM and the best fixed window, for so many robots.

    Attributes:
        sampler: The one with ``auto`` windows.
        environments: How many robots.
        best: The best of the others, by its median.
        ratio: Its chunks a second over the best one's, median of the repetitions, in pairs.
        low: The least of them.
        high: The largest of them.
    """

    sampler: str
    environments: int
    best: str
    ratio: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether it falls short by no more than ``TOLERANCE``."""
        return self.ratio >= 1 - TOLERANCE


def check_auto(batches: Sequence[BatchTime]) -> list[AutoCheck]:
    """The comparison for each number of environments; none without such samplers."""
    times = _by_count(batches)
    samplers = {label: parse_sampler(label) for label in times}
    rivals = [
        label
        for label, sampler in samplers.items()
        if isinstance(sampler, Sequential)
        or (isinstance(sampler, Speculative) and not isinstance(sampler.window, str))
    ]
    checks = []
    for label, sampler in samplers.items():
        if not rivals or not isinstance(sampler, Speculative) or sampler.window != "auto":
            continue
        for count, seconds in times[label].items():
            medians = {rival: float(np.median(times[rival][count])) for rival in rivals}
            best = min(rivals, key=medians.__getitem__)
            ratios = np.array(times[best][count]) / np.array(seconds)
            spread = float(ratios.min()), float(ratios.max())
            checks.append(AutoCheck(label, count, best, float(np.median(ratios)), *spread))
    return checks


def _by_count(batches: Sequence[BatchTime]) -> dict[str, dict[int, list[float]]]:
    """Seconds by sampler and number of environments, in the order of the repetitions."""
    times: dict[str, dict[int, list[float]]] = {}
    for batch in batches:
        by_count = times.setdefault(batch.sampler, {})
        by_count.setdefault(batch.environments, []).append(batch.seconds)
    return times


def _by_situation(measured: Measured, sampler: str) -> NDArray[np.float64]:
    """A sampler's times in the order of the situations."""
    times = {p.situation: p.seconds for p in measured.plans if p.sampler == sampler}
    return np.array([times[situation] for situation in sorted(times)])


def in_ms(milliseconds: float) -> str:
    """Milliseconds as text: three digits, but no fewer than all before the point."""
    digits = next((n for n, least in enumerate((100, 10, 1)) if milliseconds >= least), 3)
    return f"{milliseconds:.{digits}f}"
