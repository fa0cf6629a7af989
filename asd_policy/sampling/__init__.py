"""Exact and approximate sampling of Gaussian chains: mathematics on tensors.

Knows no network, no robot and no file. ``sample(denoise, chain, noise, sampler)`` is the one entry.
"""

from asd_policy.errors import SamplerError
from asd_policy.sampling.approximate import sample_ddim, sample_dpm_solver, sample_paradigms
from asd_policy.sampling.calibration import calibrate, record_predictions
from asd_policy.sampling.chain import GaussianChain
from asd_policy.sampling.denoiser import CleanPrediction, Parametrization
from asd_policy.sampling.drafts import shifted
from asd_policy.sampling.gain import Gain, fit_gain
from asd_policy.sampling.noise import ChunkNoise, NoiseStream
from asd_policy.sampling.prior import Prior
from asd_policy.sampling.result import Denoise, SampleResult
from asd_policy.sampling.samplers import (
    SAMPLERS,
    Ddim,
    DpmSolver,
    Paradigms,
    Sampler,
    Sequential,
    Speculative,
    is_exact,
    parse_sampler,
)
from asd_policy.sampling.sequential import sample_sequential
from asd_policy.sampling.speculative import sample_speculative
from asd_policy.sampling.windows import CostTable, WindowPlan

__all__ = [
    "SAMPLERS",
    "ChunkNoise",
    "CleanPrediction",
    "CostTable",
    "Ddim",
    "Denoise",
    "DpmSolver",
    "Gain",
    "GaussianChain",
    "NoiseStream",
    "Paradigms",
    "Parametrization",
    "Prior",
    "SampleResult",
    "Sampler",
    "Sequential",
    "Speculative",
    "WindowPlan",
    "calibrate",
    "fit_gain",
    "is_exact",
    "parse_sampler",
    "record_predictions",
    "sample",
    "shifted",
]


def sample(
    denoise: Denoise,
    chain: GaussianChain,
    noise: ChunkNoise,
    sampler: str | Sampler,
    prior: Prior | None = None,
) -> SampleResult:
    """Sample N chains.

    Args:
        denoise: The model: x̂0 of any mixture of chains and steps.
        chain: The reverse process.
        noise: The randomness of all chains; its device is where the sampler works.
        sampler: A sampler or its name.
        prior: What is known before the chunk begins, on the noise's device. Without a gain
            ``gain`` drafts are ``refine`` drafts.

    Returns:
        The samples ``(N, *D)`` and what they cost.

    Raises:
        SamplerError: If the sampler is unknown, lacks something it needs, or the noise has another
            number of steps.
    """
    n, steps = noise.uniforms.shape
    if steps != chain.num_steps:
        raise SamplerError(f"the chain has {chain.num_steps} steps, the noise {steps}")
    sampler, prior = parse_sampler(sampler), prior or Prior()
    if isinstance(sampler, Ddim):
        return sample_ddim(denoise, chain, noise, sampler.num_steps)
    if isinstance(sampler, DpmSolver):
        return sample_dpm_solver(denoise, chain, noise, sampler.num_steps)
    if isinstance(sampler, Paradigms):
        return sample_paradigms(denoise, chain, noise, sampler.tolerance, sampler.window)
    if isinstance(sampler, Sequential) or not prior.worth_drafting(chain, sampler, n):
        return sample_sequential(denoise, chain, noise)
    return sample_speculative(denoise, chain, noise, sampler, prior)
