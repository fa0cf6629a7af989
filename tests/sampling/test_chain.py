"""Chains against diffusers, against their definitions, and refusing what they cannot be."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from problems import random_noise

from asd_policy.errors import SamplerError
from asd_policy.sampling import CleanPrediction, GaussianChain, Parametrization, sample


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("num_steps", [100, 20, 7])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddpm_is_that_of_diffusers(schedule, variance, num_steps, prediction, monkeypatch):
    chain = GaussianChain.ddpm(num_steps, schedule, variance, num_train_steps=100)
    scheduler = diffusers.DDPMScheduler(
        100,
        beta_schedule=schedule,
        variance_type=variance,
        prediction_type=prediction,
        clip_sample=True,
    )
    scheduler.set_timesteps(num_steps)
    assert chain.network_time.tolist() == scheduler.timesteps.tolist()
    noise = random_noise(3, chain, (4, 2), seed=0)
    draws = iter(noise.steps.unbind(1))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(draws))

    def model(x, t):
        return torch.sin(x + t[:, None, None] / 20) * 0.7

    x = noise.initial
    for t in scheduler.timesteps:
        output = model(x, t.expand(3))
        x = scheduler.step(output, t, x).prev_sample

    clean = CleanPrediction(chain, Parametrization(prediction), torch.device("cpu"))
    result = sample(
        lambda x, step, _: clean(x, model(x, chain.network_time[step]), step),
        chain,
        noise,
        "ddpm",
    )
    assert torch.allclose(result.x, x, atol=1e-5, rtol=0)
    assert x.abs().max() > 0.1


def test_edm_ancestral_is_karras_and_songs():
    sigmas = torch.logspace(1, -1, 10)
    chain = GaussianChain.edm_ancestral(sigmas)
    x, clean, z = (torch.randn(10, dtype=torch.float64) for _ in range(3))
    for j, (sigma, following) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        sigma, following = float(sigma), float(following)
        # k-diffusion's get_ancestral_step with eta = 1, then Euler to sigma_down.
        up = (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5
        down = (following**2 - up**2) ** 0.5
        expected = x[j] + (x[j] - clean[j]) / sigma * (down - sigma) + up * z[j]
        ours = chain.a[j] * x[j] + chain.b[j] * clean[j] + chain.s[j] * z[j]
        assert ours == pytest.approx(float(expected), abs=1e-6)
    assert chain.initial_std == pytest.approx(10)


def test_grids_of_noise_levels():
    exponential = GaussianChain.edm_grid(5, "exponential", 0.01, 1.0).noise
    assert exponential.tolist() == pytest.approx([1, 0.316228, 0.1, 0.0316228, 0.01])
    # Karras et al. 2022, eq. 5, by hand: (1 + i / 4 (0.01^(1/7) - 1))^7.
    karras = GaussianChain.edm_grid(5, "karras", 0.01, 1.0, rho=7.0).noise
    expected = [1.0, 0.4070104, 0.1450732, 0.0432453, 0.01]
    assert karras.tolist() == pytest.approx(expected, rel=1e-5)


def test_edm_preconditioning_recovers_the_clean_sample():
    """With F = (x0 - c_skip x) / c_out the prediction is x0 itself (Karras et al., eq. 7)."""
    sigmas = torch.logspace(1, -1, 5)
    chain = GaussianChain.edm_ancestral(sigmas)
    clean = CleanPrediction(
        chain, Parametrization("edm", clip=None, sigma_data=0.5), torch.device("cpu")
    )
    x0 = torch.randn(5, 3)
    x = x0 + sigmas[:, None] * torch.randn(5, 3)
    step = torch.arange(5)
    total = (sigmas**2 + 0.25).sqrt()[:, None]
    output = (x0 - 0.25 / total**2 * x) / (sigmas[:, None] * 0.5 / total)
    assert torch.allclose(clean(x, output, step), x0, atol=1e-5)
    assert torch.allclose(clean.network_input(x, step), x / total)


def test_the_last_step_is_the_denoisers_word():
    for chain in (GaussianChain.ddpm(10), GaussianChain.edm_ancestral(torch.logspace(0, -2, 10))):
        assert (chain.a[-1], chain.b[-1], chain.s[-1]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianChain.ddpm(0), "between 1 and"),
        (lambda: GaussianChain.ddpm(101, num_train_steps=100), "between 1 and"),
        (lambda: GaussianChain.ddpm(10, schedule="sigmoid"), "unknown β schedule 'sigmoid'"),
        (lambda: GaussianChain.ddpm(10, variance="learned"), "unknown variance 'learned'"),
        (lambda: GaussianChain.edm_ancestral(torch.tensor([1.0, 1.0])), "strictly decreasing"),
        (lambda: GaussianChain.edm_ancestral(torch.tensor([1.0, 0.0])), "positive"),
        (lambda: Parametrization("score"), "unknown prediction 'score'"),
        (lambda: Parametrization(clip=-1.0), "clip must be positive"),
        (lambda: Parametrization("edm"), "sigma_data"),
        (lambda: Parametrization(sigma_data=0.5), "sigma_data"),
        (lambda: Parametrization("edm", sigma_data=0.0), "sigma_data: expected a number above 0"),
        (lambda: Parametrization("edm", sigma_data=math.nan), "expected a number above 0"),
        (lambda: Parametrization("edm", sigma_data="a"), "expected a number above 0"),
    ],
)
def test_refuses_what_it_cannot_be(build, message):
    with pytest.raises(SamplerError, match=message):
        build()


def test_posterior_tables_by_definition():
    """a, b, s of DDPM from ᾱ alone: the posterior q(x_{t-1} | x_t, x0) of the forward process."""
    chain = GaussianChain.ddpm(50)
    bar = (chain.signal**2).numpy()
    previous = np.append(bar[1:], 1.0)
    forward = 1 - bar / previous
    assert np.allclose(chain.b, np.sqrt(previous) * forward / (1 - bar), atol=1e-5)
    assert np.allclose(chain.s[:-1] ** 2, (forward * (1 - previous) / (1 - bar))[:-1], atol=1e-6)
