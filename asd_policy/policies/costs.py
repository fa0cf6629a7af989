"""What a network call costs by its number of rows, measured once for a machine and a network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from asd_policy.errors import SamplerError
from asd_policy.networks.linear import ONEDNN
from asd_policy.sampling import CostTable

_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_REPETITIONS = 5
_PATIENCE = 0.3
"""Seconds after which a batch size is measured no further, however few its repetitions."""
_LONGEST = 1.0
"""A call slower than this ends the table: larger ones are taken to be as much slower."""


def measured_costs(
    call: Callable[[int], Callable[[], None]],
    rounds: Callable[[], int],
    circumstances: Mapping[str, Any],
    device: torch.device,
) -> CostTable:
    """Time calls, or read what was timed before in these circumstances on this machine.

    The table is kept under ``$XDG_CACHE_HOME/asd_policy`` (``~/.cache/asd_policy``), so that the
    windows that follow from it, and with them the samples of a seed, stay the same here. Delete the
    file to measure again. Where it cannot be written it is measured each time.

    Args:
        call: Prepares the network's call with so many rows.
        rounds: Goes through rounds of drafting without a network; returns how many.
        circumstances: What else a call's or a round's time depends on, as the network's options.
        device: Where it runs.
    """
    where = {
        **circumstances,
        "device": _name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "torch": torch.__version__,
        "onednn_linear": device.type == "cpu" and ONEDNN,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
    }
    key = hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asd_policy"
    path = folder / f"costs-{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, SamplerError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        return CostTable(
            tuple(map(int, kept["rows"])),
            tuple(map(float, kept["seconds"])),
            float(kept["round_seconds"]),
        )
    table = measure(call, rounds, device)
    content = {**where, **asdict(table)}
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            json.dump(content, file, indent=1)
        os.replace(file.name, path)
    return table


def measure(
    call: Callable[[int], Callable[[], None]], rounds: Callable[[], int], device: torch.device
) -> CostTable:
    """Time rounds without a network, and calls of growing batches."""
    count = rounds()
    round_seconds = _least_time(rounds, device) / count
    rows, seconds = [], []
    for size in _ROWS:
        rows.append(size)
        seconds.append(_least_time(call(size), device))
        if seconds[-1] > _LONGEST and len(rows) > 1:
            break
    return CostTable(tuple(rows), tuple(seconds), round_seconds)


def _least_time(action: Callable[[], object], device: torch.device) -> float:
    """Seconds, the least of a few repetitions after one to warm up: what else runs only adds."""
    times: list[float] = []
    begin = time.perf_counter()
    for repetition in range(1 + _REPETITIONS):
        _synchronize(device)
        start = time.perf_counter()
        action()
        _synchronize(device)
        if repetition:
            times.append(time.perf_counter() - start)
        if times and time.perf_counter() - begin > _PATIENCE:
            break
    return min(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
