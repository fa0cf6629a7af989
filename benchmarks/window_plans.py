"""Are planned windows the cheapest: ``python -m benchmarks.window_plans checkpoints/can_chi_unet``.

Plans chunks at observations of the policy's own episodes with planned windows and with fixed ones,
and prints what they took: calls and evaluations a chunk, and their cost as the planner counts it,
a call and 0.01 for each row; beside it the cost that the plan expected.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from asd_policy.sampling import Prior, sample
from asd_policy.sampling.windows import EVALUATION_PRICE
from benchmarks.problem import Problem

FIRST_SEED = 970000
SAMPLERS = ("asd-paper:24", "asd-paper:inf", "asd:24", "asd:48", "asd:inf", "asd")


@torch.inference_mode()
def main() -> None:
    """Print the table of each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--chunks", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for checkpoint in arguments.checkpoints:
        problem = Problem.of(checkpoint, FIRST_SEED, arguments.chunks)
        planner, situations, noise = problem.planner, problem.situations, problem.noise
        rows = range(len(situations))
        previous = planner.expect(situations.history, situations.known(rows))
        prior = Prior(planner.gain, previous)
        plan = prior.windows(planner.chain, "planned", 1)
        if plan is None:
            raise SystemExit(f"{checkpoint}: no gain: run `python -m eval.calibrate` first")
        print(f"\n{checkpoint}, {len(rows)} chunks; the plan expects {plan.cost:.2f}\n")
        print("| sampler | calls | evaluations | cost |\n|---|--:|--:|--:|", flush=True)
        denoise = planner.denoiser(situations.history)
        for sampler in SAMPLERS:
            taken = sample(denoise, planner.chain, noise, sampler, prior)
            calls, evaluations = np.mean(taken.calls), np.mean(taken.evaluations)
            cost = calls + EVALUATION_PRICE * evaluations
            print(f"| `{sampler}` | {calls:.2f} | {evaluations:.0f} | {cost:.2f} |", flush=True)


if __name__ == "__main__":
    main()
