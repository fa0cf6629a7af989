"""The baselines are what was published, cost what they say, and are not exact."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from problems import Mixture, random_noise

from asd_policy.errors import SamplerError
from asd_policy.sampling import GaussianChain
from asd_policy.sampling.approximate import sample_ddim, sample_dpm_solver, sample_paradigms
from asd_policy.sampling.sequential import sample_sequential
from eval.two_sample import same_distribution

CHAINS = {
    "ddpm": GaussianChain.ddpm(100),
    "edm": GaussianChain.edm_ancestral(torch.logspace(1, -1.7, 100)),
}
DDPM, EDM = CHAINS["ddpm"], CHAINS["edm"]
PUBLISHED = {"tolerance": 0.1, "window": 20}


def clipped(chain):
    """The mixture's denoiser with a clip that binds."""
    denoise = Mixture(chain).denoise
    return lambda x, step, chain_index: denoise(x, step, chain_index).clamp(-0.9, 0.9)


class Counted:
    """A denoiser whose answer depends on the chain, and which counts what it is asked."""

    def __init__(self, n):
        self.calls = np.zeros(n, dtype=int)
        self.rows = np.zeros(n, dtype=int)
        self.batches = 0

    def __call__(self, x, step, chain_index):
        assert x.shape == (len(step), 4, 2) and chain_index.shape == step.shape
        assert step.dtype == chain_index.dtype == torch.int64
        counts = np.bincount(chain_index.numpy(), minlength=len(self.rows))
        self.calls += counts > 0
        self.rows += counts
        self.batches += 1
        goal, sharpness = (chain_index % 3 - 1) * 0.5, 1 + step / 50
        return (goal[:, None, None] + sharpness[:, None, None] * x).tanh()


SAMPLERS = {
    "ddim": lambda *problem: sample_ddim(*problem, 10),
    "dpm-solver++": lambda *problem: sample_dpm_solver(*problem, 10),
    "paradigms": lambda *problem: sample_paradigms(*problem, **PUBLISHED),
}


def diffusers_samples(scheduler, num_steps, x, **options):
    """The scheduler's own loop on the mixture."""
    mixture = Mixture(DDPM)
    scheduler.set_timesteps(num_steps)
    for t in scheduler.timesteps:
        output = mixture.denoise(x, (99 - t).expand(len(x)), None)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("num_steps", [1, 5, 8, 10, 16])
def test_ddim_is_that_of_diffusers(num_steps):
    scheduler = diffusers.DDIMScheduler(
        100,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample_range=0.9,
        set_alpha_to_one=True,
        steps_offset=0,
    )
    noise = random_noise(200, DDPM, (2,), seed=0)
    expected = diffusers_samples(scheduler, num_steps, noise.initial, use_clipped_model_output=True)
    result = sample_ddim(clipped(DDPM), DDPM, noise, num_steps)
    assert torch.allclose(result.x, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 15, 99])
def test_dpm_solver_is_that_of_diffusers(num_steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        100, beta_schedule="squaredcos_cap_v2", prediction_type="sample"
    )
    noise = random_noise(200, DDPM, (2,), seed=0)
    expected = diffusers_samples(scheduler, num_steps, noise.initial)
    result = sample_dpm_solver(Mixture(DDPM).denoise, DDPM, noise, num_steps)
    assert torch.allclose(result.x, expected, atol=1e-4, rtol=0)


def test_ddim_of_an_edm_chain_is_eulers_method():
    """Karras et al. (2022), algorithm 1 without churn: dx/dσ = (x - x̂0) / σ."""
    noise = random_noise(200, EDM, (2,), seed=0)
    denoise = Mixture(EDM).denoise
    sigmas, x = EDM.noise.float(), noise.initial * 10
    for j in range(100):
        slope = (x - denoise(x, torch.full((200,), j), None)) / sigmas[j]
        x = x + slope * ((sigmas[j + 1] if j < 99 else 0) - sigmas[j])
    assert torch.allclose(sample_ddim(denoise, EDM, noise, 100).x, x, atol=1e-4, rtol=0)


def test_the_solvers_of_one_ode_agree():
    """On an EDM chain, too: a few steps of second order where DDIM needs many."""
    noise = random_noise(500, EDM, (2,), seed=0)
    denoise = Mixture(EDM).denoise
    fine = sample_ddim(denoise, EDM, noise, 100).x

    def error(x):
        return float((x - fine).norm(dim=1).median())

    second = error(sample_dpm_solver(denoise, EDM, noise, 20).x)
    first = error(sample_ddim(denoise, EDM, noise, 20).x)
    assert second < 0.02 and second < first / 2


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("window", [1, 7, 100])
def test_paradigms_with_a_tiny_tolerance_is_ddpms_path(chain, window):
    noise = random_noise(20, chain, (2,), seed=0)
    expected = sample_sequential(clipped(chain), chain, noise).x
    result = sample_paradigms(clipped(chain), chain, noise, tolerance=1e-4, window=window)
    assert torch.allclose(result.x, expected, atol=1e-4, rtol=0)
    if window == 1:
        assert result.calls == result.evaluations == [100] * 20


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_paradigms_is_algorithm_1(chain):
    """The paper's loop for one chain after the other, state by state."""
    noise = random_noise(10, chain, (2,), seed=0)
    denoise = Mixture(chain).denoise
    a, b, s = chain.a.float(), chain.b.float(), chain.s.float()
    result = sample_paradigms(denoise, chain, noise, **PUBLISHED)
    for i in range(10):
        path = {j: noise.initial[i] * chain.initial_std for j in range(21)}
        t, strides = 0, []
        while t < 100:
            p = min(20, 100 - t)
            new, stride = {t: path[t]}, p
            for j in range(t, t + p):
                clean = denoise(path[j][None], torch.tensor([j]), None)[0]
                drift = a[j] * path[j] + b[j] * clean - path[j]
                new[j + 1] = new[j] + drift + s[j] * noise.steps[i, j]
            for j in reversed(range(1, p)):
                if (new[t + j] - path[t + j]).square().mean() > 0.1**2 * s[t + j - 1] ** 2:
                    stride = j
            path = {j: new[min(j, t + p)] for j in range(t, t + stride + 21)}
            t += stride
            strides.append(stride)
        assert result.accepted[i] == strides
        assert torch.allclose(result.x[i], path[100], atol=1e-5, rtol=0)


def test_paradigms_as_published_is_cheap_and_near():
    noise = random_noise(200, DDPM, (2,), seed=0)
    denoise = Mixture(DDPM).denoise
    expected = sample_sequential(denoise, DDPM, noise).x
    result = sample_paradigms(denoise, DDPM, noise, **PUBLISHED)
    difference = (result.x - expected).norm(dim=1)
    assert np.mean(result.calls) < 40
    assert difference.median() < 0.01 and (difference < 0.05).float().mean() > 0.95
    assert difference.max() > 1e-4
    assert np.mean(sample_paradigms(denoise, DDPM, noise, 0.01, 20).calls) > np.mean(result.calls)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_costs_are_what_the_network_did(sampler, chain):
    noise = random_noise(6, chain, (4, 2), seed=0)
    denoise = Counted(6)
    result = sampler(denoise, chain, noise)
    assert result.x.shape == (6, 4, 2)
    assert result.calls == denoise.calls.tolist()
    assert result.evaluations == denoise.rows.tolist()
    assert [len(accepted) for accepted in result.accepted] == result.calls
    assert denoise.batches == max(result.calls)
    for accepted in result.accepted:
        assert sum(accepted) == 100 and min(accepted) >= 1


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_chain_does_not_depend_on_its_company(sampler):
    noise = random_noise(6, DDPM, (4, 2), seed=0)
    denoise = Counted(6)
    together = sampler(denoise, DDPM, noise)
    if sampler is SAMPLERS["paradigms"]:
        assert len(set(together.calls)) > 1
    for i in range(6):
        alone = sampler(
            lambda x, step, _, i=i: denoise(x, step, i + 0 * step), DDPM, noise[i : i + 1]
        )
        assert torch.allclose(alone.x[0], together.x[i], atol=1e-5, rtol=0)
        assert alone.calls[0] == together.calls[i]
        assert alone.evaluations[0] == together.evaluations[i]


def test_ddim_is_not_ddpm():
    expected, honest, ddim = (
        run(Mixture(DDPM).denoise, DDPM, random_noise(5000, DDPM, (2,), seed)).x.numpy()
        for run, seed in [(sample_sequential, 0), (sample_sequential, 1), (SAMPLERS["ddim"], 1)]
    )
    assert same_distribution(expected, honest) > 1e-4
    assert same_distribution(expected, ddim) < 1e-6


@pytest.mark.parametrize(
    ("sampler", "arguments", "message"),
    [
        (sample_ddim, (0,), "DDIM's num_steps: expected an integer between 1 and 100, got 0"),
        (sample_ddim, (101,), "between 1 and 100, got 101"),
        (sample_ddim, (10.0,), "between 1 and 100, got 10.0"),
        (sample_dpm_solver, (0,), "num_steps: expected an integer between 1 and 99, got 0"),
        (sample_dpm_solver, (100,), "between 1 and 99, got 100"),
        (sample_paradigms, (0.1, 0), "window: expected an integer of 1 or more, got 0"),
        (sample_paradigms, (0.1, None), "window: expected an integer of 1 or more, got None"),
        (sample_paradigms, (-0.1, 20), "tolerance: expected 0 or more, got -0.1"),
        (sample_paradigms, (float("nan"), 20), "tolerance: expected 0 or more, got nan"),
        (sample_paradigms, (float("inf"), 20), "tolerance: expected 0 or more, got inf"),
    ],
)
def test_refuses_what_it_cannot_run(sampler, arguments, message):
    noise = random_noise(1, DDPM, (2,), seed=0)
    with pytest.raises(SamplerError, match=message):
        sampler(Mixture(DDPM).denoise, DDPM, noise, *arguments)
