"""The gain: on Gaussian data it is the posterior's covariance, and drafts made with it hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import random_noise

from asd_policy.errors import SamplerError
from asd_policy.sampling import Gain, GaussianChain, Prior, calibrate, fit_gain, sample
from asd_policy.sampling.gain import rotate_rows

CHAIN = GaussianChain.ddpm(40)


class Gaussian:
    """Correlated Gaussian data: its clean prediction is linear in the state."""

    def __init__(self, chain=CHAIN):
        rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
        covariance = rotation @ torch.diag(torch.tensor([1.0, 0.3, 0.05, 0.01])) @ rotation.T
        signal, noise = (t.float()[:, None, None] for t in (chain.signal, chain.noise))
        total = signal**2 * covariance + noise**2 * torch.eye(4)
        self.jacobian = signal * covariance @ torch.linalg.inv(total)

    def denoise(self, x, step, chain_index):
        return torch.einsum("nij,nj->ni", self.jacobian[step], x)


@pytest.fixture(scope="module")
def gain():
    return calibrate(Gaussian().denoise, CHAIN, random_noise(512, CHAIN, (4,), 0), clip=None)


def test_the_gain_is_the_models_jacobian(gain):
    truth = Gaussian().jacobian
    for step in (5, 20, 30, 39):
        fitted = gain.basis @ torch.diag(gain.slope[step]) @ gain.basis.T
        assert (fitted - truth[step]).norm() < 0.15 * truth[step].norm()


def test_a_linear_model_is_followed_to_the_end(gain):
    noise = random_noise(200, CHAIN, (4,), seed=3)
    calls = {
        name: np.mean(sample(Gaussian().denoise, CHAIN, noise, name, Prior(gain)).calls)
        for name in ("refine:inf", "gain:inf", "gain")
    }
    assert calls["gain:inf"] < 3.5 and calls["gain"] < 4.5
    assert calls["refine:inf"] > 1.5 * calls["gain:inf"]


def test_errors_that_windows_are_planned_with(gain):
    assert 0 < float(gain.revisit_error.max()) < 0.2 * float(gain.step_error.sum())
    assert gain.warm_error.eq(0).all(), "no previous chunk was known"
    truth = random_noise(64, CHAIN, (4,), seed=5)
    previous = [torch.full((4,), 2.0)] * 64
    warm = calibrate(Gaussian().denoise, CHAIN, truth, clip=None, previous=previous)
    # Four coordinates that are 2 off on average, and have variance 1.36 together.
    assert float(warm.warm_error[5]) == pytest.approx((16 + 1.36) ** 0.5, abs=1.0)


def test_a_good_previous_chunk_saves_calls(gain):
    noise = random_noise(100, CHAIN, (4,), seed=6)
    target = sample(Gaussian().denoise, CHAIN, noise, "ddpm").x
    known = Prior(gain, previous=list(target))
    cold, warm = (
        np.mean(sample(Gaussian().denoise, CHAIN, noise, name, known).calls)
        for name in ("gain:inf", "asd:inf")
    )
    assert warm < cold


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 4), (70, 9, 4)])
def test_a_row_is_rotated_alike_whatever_the_others(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(torch.randn(4, 4))[0]
    rows = x.reshape(-1, 4)
    together = rotate_rows(x, basis).reshape(-1, 4)
    assert torch.allclose(together, rows @ basis, atol=1e-6)
    for i in range(0, len(rows), 17):
        assert torch.equal(rotate_rows(rows[i : i + 1], basis)[0], together[i])


def test_refuses_what_it_cannot_learn_from():
    with pytest.raises(SamplerError, match="expected predictions and noise"):
        fit_gain(CHAIN, torch.zeros(8, 40, 4), torch.zeros(8, 40, 4), clip=None)
    with pytest.raises(SamplerError, match="expected predictions and noise"):
        fit_gain(CHAIN, torch.zeros(20, 39, 4), torch.zeros(20, 39, 4), clip=None)


def test_refuses_tensors_that_are_no_gain(gain):
    good = gain.tensors()
    for name, bad in {
        "basis": torch.ones(4, 4),
        "slope": -torch.ones(40, 4),
        "step_error": torch.full((40,), float("nan")),
        "revisit_error": torch.zeros(39),
        "warm_error": torch.zeros(40, dtype=torch.float64),
    }.items():
        with pytest.raises(SamplerError, match=f"gain: {name}: expected"):
            Gain(**{**good, name: bad})
