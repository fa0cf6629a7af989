"""From the noise schedulers that other projects name to chains and parametrisations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asd_policy.errors import CheckpointError
from asd_policy.sampling.chain import Posterior
from asd_policy.sampling.denoiser import Parametrization

_DEFAULTS = {
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "variance_type": "fixed_small",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
}
"""What diffusers takes for options that a configuration does not name."""
# Options that change the forward or the reverse process, and their only values supported here.
_FIXED = {"thresholding": False, "trained_betas": None, "rescale_betas_zero_snr": False}


_KINDS = {"DDPM": False, "DDPMParallel": False, "DDIM": True, "DDIMParallel": True}
"""Diffusers' schedulers of this process, and whether they abbreviate it."""


def chain_and_parametrization(
    kind: str, options: Mapping[str, Any], num_steps: int | None, posterior: Posterior, where: str
) -> tuple[dict[str, Any], Parametrization]:
    """The chain of a diffusers scheduler, as the DDPM that it samples or abbreviates.

    A DDIM scheduler names the same trained process; its chain is that process, step by step.

    Args:
        kind: The scheduler's class, such as ``DDPMScheduler``, with its module or without.
        options: Its options, as diffusers names them.
        num_steps: Steps that a DDPM runs; those of training when None. Of no account for DDIM.
        posterior: As in ``GaussianChain.ddpm``.
        where: The file, for messages.

    Raises:
        CheckpointError: If the scheduler does something that is not supported.
    """
    known = {**_DEFAULTS, **options}
    train_steps = known.get("num_train_timesteps", 1000)
    name = kind.rpartition(".")[2].removesuffix("Scheduler")
    if name not in _KINDS:
        raise CheckpointError(
            f"{where}: noise scheduler: expected DDPMScheduler or DDIMScheduler, got {kind!r}, "
            "which samples another process"
        )
    if _KINDS[name] or num_steps is None:
        num_steps = train_steps
    else:
        _check_timesteps(known, num_steps == train_steps, where)
    for name, expected in _FIXED.items():
        if known.get(name, expected) != expected:
            raise CheckpointError(f"{where}: noise scheduler: {name} = {known[name]!r}")
    variance = known["variance_type"]
    if variance == "fixed_small_log":
        variance = "fixed_small"  # the logarithm and the exponential of the same number
    schedule = known["beta_schedule"]
    if schedule == "linear" and (known["beta_start"], known["beta_end"]) != (0.0001, 0.02):
        raise CheckpointError(
            f"{where}: noise scheduler: a linear schedule from {known['beta_start']} to "
            f"{known['beta_end']}; only 0.0001 to 0.02 is supported"
        )
    chain = {
        "name": "ddpm",
        "num_steps": num_steps,
        "schedule": schedule,
        "variance": variance,
        "num_train_steps": train_steps,
        "posterior": posterior,
    }
    clip = float(known["clip_sample_range"]) if known["clip_sample"] else None
    return chain, Parametrization(known["prediction_type"], clip)


def _check_timesteps(options: Mapping[str, Any], all_of_them: bool, where: str) -> None:
    """Refuse a DDPM that runs other steps of training than every n-th down to the first."""
    spacing, offset = options.get("timestep_spacing", "leading"), options.get("steps_offset", 0)
    if offset or not (all_of_them or spacing == "leading"):
        raise CheckpointError(
            f"{where}: noise scheduler: expected timestep_spacing 'leading' and steps_offset 0, "
            f"got {spacing!r} and {offset!r}"
        )
