"""What oneDNN's matrix products are worth: ``python -m benchmarks.linear CHECKPOINT…``.

Times a network's call with PyTorch's own products (MKL on x86) and with oneDNN's, in turns, for
some numbers of rows, on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import asd_policy
from asd_policy.networks import linear

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


def main() -> None:
    """Time, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", metavar="checkpoint")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if not linear.ONEDNN:
        parser.error("expected an x86 processor and a PyTorch with oneDNN")
    torch.set_num_threads(1)
    print("| checkpoint | rows | PyTorch | oneDNN | ratio | largest difference |")
    print("|---|--:|--:|--:|--:|--:|")
    for checkpoint in options.checkpoints:
        for rows in _ROWS:
            own, onednn, difference = measure(checkpoint, rows, options.repeats)
            print(
                f"| {Path(checkpoint).name} | {rows} | {1e3 * own:.2f} ms | {1e3 * onednn:.2f} ms "
                f"| {onednn / own:.2f} | {difference:.0e} |",
                flush=True,
            )
    print(f"\ntorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")


@torch.inference_mode()
def measure(checkpoint: str, rows: int, repeats: int) -> tuple[float, float, float]:
    """Median seconds of a call with either, and how far its normalised actions differ."""
    planner = asd_policy.load_policy(checkpoint, device="cpu").planner
    sizes = (1, planner.spec.obs_horizon, planner.spec.observation_dim)
    generator = np.random.default_rng(0)
    denoise = planner.denoiser(generator.standard_normal(sizes).astype(np.float32))
    x = torch.from_numpy(generator.standard_normal((rows, *planner.chunk_shape))).float()
    step = torch.arange(rows) % planner.chain.num_steps
    seconds: dict[bool, list[float]] = {False: [], True: []}
    results = {}
    for _ in range(2 + repeats):
        for enabled in seconds:
            linear.ONEDNN = enabled
            begin = time.perf_counter()
            results[enabled] = denoise(x, step, torch.zeros_like(step))
            seconds[enabled].append(time.perf_counter() - begin)
    own, onednn = (statistics.median(seconds[enabled][2:]) for enabled in (False, True))
    return own, onednn, float((results[True] - results[False]).abs().max())


if __name__ == "__main__":
    main()
