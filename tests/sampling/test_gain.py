"""The gain: on Gaussian data it is the posterior's covariance, and drafts made with it hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import random_noise
from scipy.stats import norm

from asd_policy.errors import SamplerError
from asd_policy.sampling import (
    Gain,
    GaussianChain,
    Prior,
    calibrate,
    drafts,
    fit_gain,
    record_predictions,
    sample,
)
from asd_policy.sampling.gain import HOPELESS, rotate_rows, typical_error

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


def calibrated(noise, previous=None):
    chains = (Gaussian().denoise, CHAIN, noise)
    return calibrate(*chains, record_predictions(*chains), clip=None, previous=previous)


@pytest.fixture(scope="module")
def gain():
    return calibrated(random_noise(512, CHAIN, (4,), 0))


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


class Individual(Gaussian):
    """Each chain answers more strongly than the gain says in one direction of its own."""

    def __init__(self, chains):
        super().__init__()
        directions = torch.randn(chains, 4, generator=torch.Generator().manual_seed(7))
        self.own = torch.nn.functional.normalize(directions, dim=1)

    def denoise(self, x, step, chain_index):
        own = self.own[chain_index]
        strength = self.jacobian[step].diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
        along = (own * x).sum(1, keepdim=True)
        return super().denoise(x, step, chain_index) + strength * along * own


def test_what_a_step_said_twice_is_learned(gain, monkeypatch):
    noise = random_noise(200, CHAIN, (4,), seed=3)

    def calls(name):
        return np.mean(sample(Individual(200).denoise, CHAIN, noise, name, Prior(gain)).calls)

    with_secants = {name: calls(name) for name in ("gain:inf", "gain+block:inf", "refine:inf")}
    monkeypatch.setattr(drafts, "_TRUST", 0.0)
    assert with_secants["gain:inf"] < 0.88 * calls("gain:inf")
    assert with_secants["gain+block:inf"] < 0.95 * calls("gain+block:inf")
    assert with_secants["refine:inf"] == calls("refine:inf"), "it has none"


def test_errors_that_windows_are_planned_with(gain):
    ahead = gain.error[1, 1:]
    assert gain.error[0].eq(HOPELESS).all(), "no previous chunk was known"
    assert float(gain.error[-1, 35]) < 0.3 * float(ahead[34]), "a second visit knows more"
    assert float(ahead[30]) > float(gain.error[30, 31]), "errors add up"
    truth = random_noise(64, CHAIN, (4,), seed=5)
    previous = [torch.full((4,), 2.0)] * 64
    warm = calibrated(truth, previous)
    # Four coordinates that are 2 off on average, and have variance 1.36 together.
    assert float(warm.error[0, 5]) == pytest.approx((16 + 1.36) ** 0.5, abs=1.0)


def test_a_typical_error_is_accepted_as_often_as_all_errors_on_average():
    gap = torch.tensor([0.5, 2.0, 0.0, 1.0])
    error = torch.rand(500, 4, generator=torch.Generator().manual_seed(0)) * 3
    error[::2, 3] = float("nan")
    typical = typical_error(error, gap)
    accepted = 2 * norm.cdf(-gap * error / 2)
    expected = 2 * norm.cdf(-gap * typical / 2)
    assert expected == pytest.approx(np.nanmean(accepted, axis=0), rel=1e-4)
    assert float(typical[2]) == pytest.approx(float(error[:, 2].square().mean().sqrt()))
    one_bad = torch.tensor([[0.1], [0.1], [0.1], [50.0]])
    assert float(typical_error(one_bad, torch.ones(1))) < 1.0, "one hopeless chunk counts as one"


def test_prefixes_of_a_path_stand_as_often_as_those_of_unlike_chunks():
    generator = torch.Generator().manual_seed(0)
    hardness = torch.rand(400, 1, generator=generator) ** 3
    error = hardness * (0.5 + torch.rand(400, 30, generator=generator))
    gap = torch.ones(30)
    stand = 2 * norm.cdf(-error / 2)
    expected = stand.cumprod(1).mean(0)
    path = 2 * norm.cdf(-typical_error(error, gap, one_path=True) / 2)
    assert path.cumprod() == pytest.approx(expected, rel=1e-3)
    steps = 2 * norm.cdf(-typical_error(error, gap) / 2)
    assert steps.cumprod()[-1] < 0.5 * expected[-1], "easy chunks get further than the mean"


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


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("basis", torch.ones(4, 4)),
        ("basis", torch.eye(5)),
        ("slope", -torch.ones(40, 4)),
        ("error", torch.full((41, 40), float("nan"))),
        ("error", torch.zeros(40, 40)),
        ("error", torch.zeros(41, 40, dtype=torch.float64)),
    ],
)
def test_refuses_tensors_that_are_no_gain(gain, name, bad):
    with pytest.raises(SamplerError, match=f"gain: {name}: expected"):
        Gain(**{**gain.tensors(), name: bad})
