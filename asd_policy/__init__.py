"""Diffusion policies on robots: exact 100-step DDPM in a handful of sequential network calls."""

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
    "load_policy",
]
