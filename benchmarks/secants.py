"""What secants are worth: ``python -m benchmarks.secants checkpoints/can_chi_unet``.

Plans chunks at observations of the policy's own episodes with drafts that learn from two visits of
a step and with drafts that do not, and prints the calls and evaluations that a chunk took; so, too,
for other degrees of trust and numbers of passes than those in use.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import asd_policy
import envs
from asd_policy.sampling import Prior, drafts, sample
from eval.environments import env_maker
from eval.situations import record

FIRST_SEED = 980000
SAMPLERS = ("asd:inf", "asd")
SETTINGS = ((0.0, 0), (0.5, 2), (1.0, 2), (0.9, 1), (0.9, 3), (0.9, 2))
"""Trust and passes; the first is no secants, the last what is in use."""


@torch.inference_mode()
def main() -> None:
    """Print the table of each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--chunks", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for checkpoint in arguments.checkpoints:
        policy = asd_policy.load_policy(checkpoint, device="cpu")
        make_env = env_maker(policy.spec)
        limit = envs.spec(policy.spec.task).max_episode_steps
        situations = record(policy, make_env, FIRST_SEED, arguments.chunks, limit)
        planner, rows = policy.planner, range(len(situations))
        noise = situations.noise(rows, planner.chain.num_steps, planner.chunk_shape, repeat=1)
        previous = planner.expect(situations.history, situations.known(rows))
        prior = Prior(planner.gain, previous)
        denoise = planner.denoiser(situations.history)
        print(f"\n{checkpoint}, {len(rows)} chunks\n")
        print(f"| trust | passes | {' | '.join(f'`{name}`' for name in SAMPLERS)} |")
        print("|--:|--:|--:|--:|", flush=True)
        for trust, passes in SETTINGS:
            drafts._TRUST, drafts._CORRECTIONS = trust, passes
            cells = []
            for sampler in SAMPLERS:
                taken = sample(denoise, planner.chain, noise, sampler, prior)
                cells.append(f"{np.mean(taken.calls):.2f} / {np.mean(taken.evaluations):.0f}")
            print(f"| {trust} | {passes} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
