"""What results were made with: versions of everything, the machine, the commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import asd_policy
from asd_policy.errors import CheckpointError
from asd_policy.formats import fingerprint
from asd_policy.sampling import Sampler
from eval.errors import RequestError

_DISTRIBUTIONS = ("torch", "numpy", "gymnasium", "gym-pusht", "pymunk", "mujoco", "robosuite")

DECISIVE = ("asd_policy", *_DISTRIBUTIONS, "device")
"""What an episode's course depends on: results that differ in any of these are not mixed."""
MACHINE = ("cpu", "gpu", "python", "platform")
"""Where something ran; of the first two its time depends on."""


def describe(device: str) -> dict[str, str]:
    """Name all that results made now depend on; what is missing is called "none".

    Args:
        device: Where the network runs.
    """
    return {
        "asd_policy": asd_policy.__version__,
        **{name: _version(name) for name in _DISTRIBUTIONS},
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "gpu": _gpu_name(device),
        "commit": _commit(),
    }


def identify(checkpoint: str | Path, sampler: Sampler | None = None) -> str:
    """The fingerprint under which results of a checkpoint are known (see `formats.fingerprint`).

    Call this before anything that takes long.

    Raises:
        RequestError: If it is of another project's format, which has none.
    """
    try:
        return fingerprint(checkpoint, sampler)
    except CheckpointError as error:
        raise RequestError(
            f"checkpoint: expected a folder as this library writes it, got {checkpoint} ({error}); "
            f"convert it: python -m asd_policy.formats.convert {checkpoint} FOLDER"
        ) from error


def cpu_name() -> str:
    """The processor's name."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "none"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"


def _commit() -> str:
    """The clone's commit, marked "-dirty" if tracked files have changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return result.stdout.strip() or "none"
