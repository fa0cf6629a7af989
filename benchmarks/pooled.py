"""Do the samplers act alike? ``python -m benchmarks.pooled benchmarks/paper_*/episodes.sqlite``.

Pools the episodes of all policies: paired by policy, initial state and repeat, how much oftener one
sampler succeeds than another, and how much longer its episodes last. Length tells more than
success, which many policies nearly always have; an episode that fails has the length of the limit.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

PAIRS = (("asd", "ddpm"), ("asd-paper:24", "ddpm"), ("asd", "asd-paper:24"))

Policy = tuple[str, str]  # store, task
Values = dict[tuple[int, int], tuple[float, float]]  # (seed, repeat): success, log of the length


def episodes(store: Path) -> dict[tuple[Policy, str], Values]:
    """What a store holds, by policy and sampler; its own name tells families of policies apart."""
    found: dict[tuple[Policy, str], Values] = defaultdict(dict)
    if not store.is_file():
        raise SystemExit(f"{store}: expected an episodes.sqlite of eval.success, there is no file")
    query = "SELECT task, sampler, seed, repeat, success, steps FROM episodes"
    with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        for task, sampler, seed, repeat, success, steps in connection.execute(query):
            values = found[(str(store), task), sampler]
            if (seed, repeat) in values:
                raise SystemExit(f"{store}: {task}, {sampler}: episodes of several checkpoints")
            values[seed, repeat] = success, np.log(steps)
    return found


def differences(values: Values, baseline: Values) -> NDArray[np.float64]:
    """Means over the repeats that both have, for each seed, ``(seeds, 2)``."""
    by_seed = defaultdict(list)
    for key in sorted(values.keys() & baseline.keys()):
        by_seed[key[0]].append(np.subtract(values[key], baseline[key]))
    return np.array([np.mean(each, axis=0) for each in by_seed.values()])


def main() -> None:
    """Print a line for each pair of samplers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", type=Path, help="episodes.sqlite of eval.success")
    found: dict[tuple[Policy, str], Values] = {}
    for store in parser.parse_args().stores:
        found |= episodes(store)
    print(
        "| | policies | policies x seeds | success | p | length | p "
        "| length, policy by policy: z | p |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name, base in PAIRS:
        policies = [
            differences(values, found[policy, base])
            for (policy, sampler), values in found.items()
            if sampler == name and (policy, base) in found
        ]
        if not policies:
            continue
        pooled = np.concatenate(policies)
        mean, error = pooled.mean(0), stats.sem(pooled)
        p = 2 * stats.norm.sf(np.abs(mean / error))
        z = np.array([each[:, 1].mean() / stats.sem(each[:, 1]) for each in policies])
        alike = stats.chi2.sf(np.square(z).sum(), len(z))
        print(
            f"| `{name}` minus `{base}` | {len(policies)} | {len(pooled)} "
            f"| {mean[0]:+.4f} ± {error[0]:.4f} | {p[0]:.2f} "
            f"| {100 * mean[1]:+.2f} % ± {100 * error[1]:.2f} % | {p[1]:.2f} "
            f"| {z.min():+.1f} … {z.max():+.1f} | {alike:.2f} |"
        )


if __name__ == "__main__":
    main()
