"""What form the gain should have: ``python -m benchmarks.gain_forms checkpoints/pusht_chi_unet``.

Samples chunks step by step at observations of the policy's own episodes, fits gains of several
forms to three quarters of them, and prints how far a draft made from the step before is off on the
rest: the root mean square of ‖D‖, by step. A draft is accepted with probability 2 Φ(-‖D‖/2).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.fft import dct
from scipy.linalg import block_diag
from torch import Tensor
from tqdm import tqdm

import asd_policy
import envs
from asd_policy.sampling import Denoise, sample
from eval.environments import env_maker
from eval.situations import record

STEPS = (1, 5, 20, 40, 60, 80, 90, 94, 96, 97, 98)
RIDGE = 0.02


class Recorded:
    """A model that keeps its predictions."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.seen = denoise, list[Tensor]()

    def __call__(self, x: Tensor, step: Tensor, chain_index: Tensor) -> Tensor:
        """Predict, and keep it."""
        self.seen.append(self.denoise(x, step, chain_index))
        return self.seen[-1]


@torch.inference_mode()
def paths(checkpoint: str, chunks: int) -> tuple[Tensor, Tensor, asd_policy.Policy]:
    """Predictions and noise of sequential chunks, ``(N, K, D)`` each."""
    policy = asd_policy.load_policy(checkpoint, device="cpu", gain=False)
    task = envs.spec(policy.spec.task)
    make_env = env_maker(policy.spec)
    situations = record(policy, make_env, 950000, chunks, task.max_episode_steps)
    planner = policy.planner
    steps = planner.chain.num_steps
    predictions, noises = [], []
    for at in tqdm(range(0, chunks, 64), desc="sampling"):
        rows = range(at, min(at + 64, chunks))
        model = Recorded(planner.denoiser(situations.history[rows.start : rows.stop]))
        noise = situations.noise(rows, steps, planner.chunk_shape, repeat=1)
        sample(model, planner.chain, noise, "ddpm")
        predictions.append(torch.stack(model.seen, 1).flatten(2))
        noises.append(noise.steps.flatten(2))
    return torch.cat(predictions), torch.cat(noises), policy


def main() -> None:
    """Print the table of one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--chunks", type=int, default=768)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    predictions, noise, policy = paths(arguments.checkpoint, arguments.chunks)
    chain, (horizon, action_dim) = policy.planner.chain, policy.planner.chunk_shape
    n, k, size = predictions.shape
    fit, test = slice(0, 3 * n // 4), slice(3 * n // 4, n)
    s = chain.s.float()
    gap = torch.where(s > 0, chain.b.float() / s, 0.0)
    change = predictions[:, 1:] - predictions[:, :-1]
    innovation = s[:-1, None] * noise[:, :-1]
    weighted = (change * gap[1:, None])[fit]
    principal = torch.linalg.eigh(torch.einsum("nki,nkj->ij", weighted, weighted))[1]
    # Time-major chunks: the transform over time, for each action coordinate.
    cosines = torch.from_numpy(dct(np.eye(horizon), norm="ortho", axis=0).T).float()
    order = torch.arange(size).view(horizon, action_dim).T.flatten()
    over_time = torch.zeros(size, size)
    over_time[order] = torch.from_numpy(block_diag(*[cosines.numpy()] * action_dim)).float()

    def missed(j: int, guess: Tensor) -> float:
        """Root mean square of ‖D‖ on the chunks that were not fitted to."""
        return float(((change[:, j - 1] - guess)[test] * gap[j]).square().sum(-1).mean().sqrt())

    def diagonal(j: int, basis: Tensor) -> Tensor:
        x, y = innovation[:, j - 1] @ basis, change[:, j - 1] @ basis
        slope = (x[fit] * y[fit]).sum(0) / x[fit].square().sum(0)
        return (x * slope) @ basis.T

    def full(j: int) -> Tensor:
        x, y = innovation[:, j - 1], change[:, j - 1]
        ridge = RIDGE * x[fit].square().sum(0).mean() * torch.eye(size)
        return x @ torch.linalg.solve(x[fit].T @ x[fit] + ridge, x[fit].T @ y[fit])

    def scalar(j: int) -> Tensor:
        x, y = innovation[:, j - 1], change[:, j - 1]
        return x * ((x[fit] * y[fit]).sum() / x[fit].square().sum())

    forms = {
        "none": lambda j: torch.zeros(n, size),
        "scalar": scalar,
        "diagonal, DCT over time": lambda j: diagonal(j, over_time),
        "full matrix, ridge": full,
        "diagonal, common principal basis": lambda j: diagonal(j, principal),
    }
    print(f"\n{arguments.checkpoint}: D = {size}, {n} chunks, rms ‖D‖ of a draft by step\n")
    print("| gain | " + " | ".join(map(str, STEPS)) + " |")
    print("|---|" + "--:|" * len(STEPS))
    for name, form in forms.items():
        print(f"| {name} | " + " | ".join(f"{missed(j, form(j)):.3f}" for j in STEPS) + " |")


if __name__ == "__main__":
    main()
