"""Writes a checkpoint of any known format as a native one.

``python -m asd_policy.formats.convert FILE_OR_FOLDER FOLDER``
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from asd_policy.errors import AsdPolicyError, CheckpointError
from asd_policy.formats.native import save_checkpoint
from asd_policy.formats.reading import FORMATS, read_checkpoint
from asd_policy.sampling.chain import Posterior


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    posterior: Posterior = "ratio",
    half: bool = False,
    scaler: str | Path | None = None,
) -> None:
    """Write a checkpoint as a native one.

    Args:
        source: A file or a folder of any known format.
        folder: Where to; it must not be there.
        posterior: As in ``read_checkpoint``.
        half: Whether to store the network in float16.
        scaler: As in ``read_checkpoint``.

    Raises:
        CheckpointError: If the source cannot be read, or the folder is there.
    """
    if Path(folder).exists():
        raise CheckpointError(f"{folder}: is there already; name another folder")
    checkpoint = read_checkpoint(source, posterior, scaler)
    notes = {**checkpoint.provenance, "converted_from": Path(source).name}
    save_checkpoint(
        replace(checkpoint, provenance=notes),
        folder,
        stored=torch.float16 if half else torch.float32,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 0 if it was written, 2 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m asd_policy.formats.convert",
        description="Write a checkpoint as a native one: config.json and model.safetensors.",
        epilog="; ".join(f"{name}: {what}" for name, what in FORMATS.items()),
    )
    parser.add_argument("checkpoint", type=Path, help="a file or a folder of any known format")
    parser.add_argument("folder", type=Path, help="the folder to write, which must not be there")
    parser.add_argument(
        "--posterior",
        choices=("ratio", "table"),
        default="ratio",
        help="how the DDPM rounds: as today's diffusers, or as the one that diffusion_policy and "
        "robomimic pin (0.11); actions differ by some 1e-5",
    )
    parser.add_argument("--half", action="store_true", help="store the network in float16")
    parser.add_argument(
        "--scaler", type=Path, help="for BESO: a .npz file with the training data's statistics"
    )
    options = parser.parse_args(arguments)
    try:
        convert(
            options.checkpoint,
            options.folder,
            posterior=options.posterior,
            half=options.half,
            scaler=options.scaler,
        )
    except (AsdPolicyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"wrote {options.folder}; next: python -m eval.calibrate checkpoint={options.folder}\n"
        "(and recorded=FILE.hdf5, what the robot saw, where its task is not simulated here)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
