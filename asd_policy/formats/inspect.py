"""What a checkpoint holds, without running anything in it.

``python -m asd_policy.formats.inspect FILE_OR_FOLDER``
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from asd_policy.errors import AsdPolicyError
from asd_policy.formats.native import Checkpoint
from asd_policy.formats.reading import FORMATS, recognised
from asd_policy.formats.torch_files import TorchFile


def describe(path: str | Path, scaler: str | Path | None = None) -> dict[str, Any]:
    """What a checkpoint is, as plain JSON values.

    Args:
        path: A file or a folder of any known format.
        scaler: As in ``read_checkpoint``.

    Returns:
        Its format, policy, number of parameters and normalisers.

    Raises:
        asd_policy.CheckpointError: If it cannot be read; nothing in it was run.
    """
    with recognised(path, scaler) as (name, read):
        checkpoint = read("ratio")
    return {"path": str(path), "format": name, **_contents(checkpoint)}


def _contents(checkpoint: Checkpoint) -> dict[str, Any]:
    parameters = sum(p.numel() for p in checkpoint.network.parameters())
    normalizers = {
        key: {
            "values": len(normalizer.scale),
            "scale": [float(normalizer.scale.min()), float(normalizer.scale.max())],
            "offset": [float(normalizer.offset.min()), float(normalizer.offset.max())],
        }
        for key, normalizer in checkpoint.normalizers.items()
    }
    return {
        "parameters": parameters,
        "policy": checkpoint.spec.to_dict(),
        "normalizers": normalizers,
        "provenance": dict(checkpoint.provenance),
    }


def _text(found: dict[str, Any]) -> str:
    policy = found["policy"]
    network, chain = (
        ", ".join(f"{k} {v}" for k, v in policy[part].items() if k != "name")
        for part in ("network", "chain")
    )
    parametrization = ", ".join(f"{k} {v}" for k, v in policy["parametrization"].items())
    lines = [
        f"{found['path']}",
        f"  format          {found['format']}: {FORMATS[found['format']]}",
        f"  task            {policy['task']}",
        f"  observations    To = {policy['obs_horizon']} frames of",
        *(f"                    {o['key']} {tuple(o['shape'])}" for o in policy["observations"]),
        f"  actions         Tp = {policy['pred_horizon']} of {policy['action_dim']} numbers "
        f"({policy['action_mode']}), Ta = {policy['action_horizon']} executed from index "
        f"{policy['first_action']}",
        f"  network         {policy['network']['name']}, {found['parameters']:,} parameters: "
        f"{network}",
        f"  chain           {policy['chain']['name']}: {chain}",
        f"  prediction      {parametrization}",
        "  normalisers     scale and offset, least and largest",
    ]
    for key, table in found["normalizers"].items():
        (low, high), (least, most) = table["scale"], table["offset"]
        lines.append(
            f"                    {key} ({table['values']}): {low:.4g} … {high:.4g}, "
            f"{least:.4g} … {most:.4g}"
        )
    return "\n".join(lines)


def _mentioned(path: Path) -> list[str]:
    """The names that a file's pickle mentions; none where there is no pickle to be read."""
    if path.is_dir():
        return []
    try:
        with TorchFile(path) as file:
            return file.mentioned()
    except AsdPolicyError:
        return []


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; 0 if the checkpoint can be loaded, 2 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m asd_policy.formats.inspect",
        description="Say what a checkpoint holds. Nothing in it is run.",
        epilog="; ".join(f"{name}: {what}" for name, what in FORMATS.items()),
    )
    parser.add_argument("checkpoint", type=Path, help="a file or a folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--scaler", type=Path, help="for BESO: a .npz file with the training data's statistics"
    )
    options = parser.parse_args(arguments)
    try:
        found = describe(options.checkpoint, options.scaler)
    except AsdPolicyError as error:
        print(f"error: {error}", file=sys.stderr)
        for name in _mentioned(options.checkpoint):
            print(f"  the file's pickle mentions {name}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2) if options.json else _text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
