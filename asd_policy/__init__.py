"""Diffusion policies on robots: exact 100-step DDPM in a handful of sequential network calls."""

import os

# Planned windows call the network with many batch sizes, and on a CPU each has kernels of its own.
# oneDNN keeps 1024 unless told otherwise before its first use, and makes the others anew each time.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

from asd_policy.errors import (
    AsdPolicyError,
    CheckpointError,
    EpisodeError,
    ObservationError,
    PlanningError,
    SamplerError,
)
from asd_policy.formats import load_policy
from asd_policy.policies import Plan, Policy
from asd_policy.runtime.accelerate import accelerate

__version__ = "0.2.0"

__all__ = [
    "AsdPolicyError",
    "CheckpointError",
    "EpisodeError",
    "ObservationError",
    "Plan",
    "PlanningError",
    "Policy",
    "SamplerError",
    "accelerate",
    "load_policy",
]
