"""How quickly a checkpoint loads: ``python -m benchmarks.loading [CHECKPOINT]``.

Converts the checkpoint to the native form (without one: a Chi U-Net of full size, 65.9 M
parameters, with random weights), then loads it some times, each time beside a plain read of the
same bytes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

import asd_policy
from asd_policy.formats import Checkpoint, read_checkpoint, save_checkpoint
from asd_policy.policies import Normalizer, ObservationKey, PolicySpec


def full_size() -> Checkpoint:
    """A policy of the size that Chi et al. published for Robomimic's Square."""
    spec = PolicySpec(
        task="square",
        observations=(ObservationKey("object", (23,)),),
        action_dim=7,
        action_mode="absolute",
        action_rotation="rotation_6d",
        obs_horizon=2,
        pred_horizon=16,
        action_horizon=8,
        first_action=1,
        network={
            "name": "chi_unet",
            "diffusion_step_embed_dim": 256,
            "down_dims": [256, 512, 1024],
            "kernel_size": 5,
            "n_groups": 8,
            "cond_predict_scale": True,
        },
    )
    normalizers = {
        key: Normalizer(torch.ones(size), torch.zeros(size))
        for key, size in spec.normalizer_sizes.items()
    }
    return Checkpoint(spec, spec.build_network(), normalizers, {"note": "random weights"})


def main() -> None:
    """Load, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", help="any checkpoint that load_policy reads")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = full_size() if options.checkpoint is None else read_checkpoint(options.checkpoint)
    loads, reads = [], []
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "native"
        save_checkpoint(source, folder)
        weights = folder / "model.safetensors"
        for _ in range(1 + options.repeats):
            begin = time.perf_counter()
            asd_policy.load_policy(folder)
            middle = time.perf_counter()
            weights.read_bytes()
            loads.append(middle - begin)
            reads.append(time.perf_counter() - middle)
        megabytes = weights.stat().st_size / 1e6
    parameters = sum(p.numel() for p in source.network.parameters()) / 1e6
    load, read = (statistics.median(times[1:]) for times in (loads, reads))
    print("| parameters | file | load | plain read | difference |\n|--:|--:|--:|--:|--:|")
    print(
        f"| {parameters:.1f} M | {megabytes:.0f} MB | {load:.2f} s | {read:.2f} s | "
        f"{load - read:.2f} s |"
    )


if __name__ == "__main__":
    main()
