"""What drafts gain by what they know: ``python -m benchmarks.drafts checkpoints/can_chi_unet``.

Plans chunks at observations of the policy's own episodes and prints the calls and evaluations that
a chunk took: with first drafts from nothing, from the chunk before and from the chunk to expect,
and without and with secants; then for other degrees of trust in secants, and numbers of passes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from asd_policy.sampling import Prior, drafts, sample
from benchmarks.problem import Problem

FIRST_SEED = 980000
SAMPLERS = ("asd:24", "asd:48", "asd:inf")
SECANTS = ((0.0, 0), (0.5, 2), (1.0, 2), (0.9, 1), (0.9, 3), (0.9, 2))
"""Trust and passes; the first is none at all, the last what is in use."""


@torch.inference_mode()
def main() -> None:
    """Print the table of each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--chunks", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for checkpoint in arguments.checkpoints:
        problem = Problem.of(checkpoint, FIRST_SEED, arguments.chunks)
        planner, situations, noise = problem.planner, problem.situations, problem.noise
        rows = range(len(situations))
        denoise = planner.denoiser(situations.history)
        previous: Sequence[Tensor | None] = situations.known(rows)
        beginnings = {
            "nothing": [None] * len(rows),
            "the chunk before": previous,
            "the chunk to expect": planner.expect(situations.history, previous),
        }
        tried = [(name, *SECANTS[i]) for i in (0, -1) for name in beginnings]
        tried += [("the chunk to expect", *secants) for secants in SECANTS[1:-1]]
        print(f"\n{checkpoint}, {len(rows)} chunks\n")
        print(f"| begins from | trust | passes | {' | '.join(f'`{s}`' for s in SAMPLERS)} |")
        print("|---|--:|--:|--:|--:|--:|", flush=True)
        for name, trust, passes in tried:
            drafts._TRUST, drafts._CORRECTIONS = trust, passes
            prior = Prior(planner.gain, beginnings[name])
            cells = []
            for sampler in SAMPLERS:
                taken = sample(denoise, planner.chain, noise, sampler, prior)
                cells.append(f"{np.mean(taken.calls):.2f} / {np.mean(taken.evaluations):.0f}")
            print(f"| {name} | {trust} | {passes} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
