"""The reflection coupling: exact, maximal, and calm where the draft is the target."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest

from asd_policy.sampling.coupling import block_verification, reflection_coupling


@pytest.mark.parametrize("distance", [0.1, 1.0, 3.0])
def test_draws_the_target_and_accepts_as_often_as_can_be(distance):
    n, size = 40_000, 5
    generator = torch.Generator().manual_seed(0)
    z, u = torch.randn(n, size, generator=generator), 1 - torch.rand(n, generator=generator)
    difference = torch.full((size,), distance / math.sqrt(size)).expand(n, size)
    accepted, rejected_noise = reflection_coupling(difference, z, u)
    # In units of s and from the target's mean, the draft's state is D + z.
    noise = torch.where(accepted[:, None], difference + z, rejected_noise)
    for direction in torch.randn(6, size, generator=generator):
        projected = (noise @ (direction / direction.norm())).numpy()
        assert kstest(projected, "norm").pvalue > 1e-4
    probability = 1 + math.erf(-distance / 2 / math.sqrt(2))
    error = math.sqrt(probability * (1 - probability) / n)
    assert accepted.float().mean() == pytest.approx(probability, abs=5 * error)


def test_a_draft_that_is_the_target_is_accepted():
    z = torch.randn(50, 3)
    accepted, rejected_noise = reflection_coupling(torch.zeros(50, 3), z, torch.ones(50))
    assert accepted.all()
    assert torch.isfinite(rejected_noise).all()


def test_a_draft_that_is_not_finite_is_rejected_and_harmless():
    z = torch.randn(3, 2)
    difference = torch.tensor([[torch.nan, 1.0], [torch.inf, 0.0], [1e30, 1e30]])
    accepted, rejected_noise = reflection_coupling(difference, z, torch.full((3,), 1e-30))
    assert not accepted.any()
    assert torch.equal(rejected_noise, z)


def test_a_rejection_keeps_the_noises_length():
    z = torch.randn(200, 3)
    difference = 4 * torch.randn(200, 3)
    noise = reflection_coupling(difference, z, torch.ones(200)).rejected_noise
    assert torch.allclose(noise.norm(dim=1), z.norm(dim=1), atol=1e-5)


def block(distance, n=40_000, width=4, size=5, drafts=4):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, width, size, generator=generator)
    u = 1 - torch.rand(n, width + 1, generator=generator)
    difference = torch.full((size,), distance / math.sqrt(size)).expand(n, width, size)
    fresh = torch.randn(n, size, generator=generator)
    fresh_u = 1 - torch.rand(n, generator=generator)
    count = torch.full((n,), drafts)
    return difference, z, u, block_verification(difference, z, u, count, fresh, fresh_u)


@pytest.mark.parametrize("far", [torch.nan, torch.inf, 1e30, 1e18, 1e14, 1e7, 1e5, 100.0])
def test_a_block_ends_before_a_draft_that_is_far_off(far):
    """Were it only near: the noise there is normal, and the drafts before it stand as ever."""
    n, size = 20_000, 5
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 3, size, generator=generator)
    u, fresh_u = (1 - torch.rand(*s, generator=generator) for s in ((n, 4), (n,)))
    fresh = torch.randn(n, size, generator=generator)
    difference = torch.zeros(n, 3, size)
    difference[:, 1, 0], difference[:, 2] = far, torch.nan
    stop, noise = block_verification(difference, z, u, torch.full((n,), 3), fresh, fresh_u)
    assert (stop == 1).all()
    for axis in range(size):
        assert kstest(noise[:, axis].numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("distance", [0.1, 1.0, 3.0])
def test_a_block_draws_the_target_at_its_first_step(distance):
    difference, z, _, (stop, noise) = block(distance)
    first = torch.where((stop > 0)[:, None], difference[:, 0] + z[:, 0], noise)
    for direction in torch.randn(6, 5, generator=torch.Generator().manual_seed(1)):
        projected = (first @ (direction / direction.norm())).numpy()
        assert kstest(projected, "norm").pvalue > 1e-4


@pytest.mark.parametrize("distance", [0.3, 1.0])
def test_a_block_keeps_more_than_steps_one_by_one(distance):
    difference, z, u, (stop, _) = block(distance)
    one_by_one = reflection_coupling(difference, z, u[:, :-1]).accepted.long().cumprod(1).sum(1)
    assert stop.float().mean() > 1.01 * one_by_one.float().mean()


def test_a_block_of_one_draft_is_maximally_coupled():
    distance = 1.0
    *_, (stop, _) = block(distance, width=1, drafts=1)
    probability = 1 + math.erf(-distance / 2 / math.sqrt(2))
    assert stop.float().mean() == pytest.approx(probability, abs=0.01)


def test_a_block_that_is_the_target_stands():
    z = torch.randn(50, 3, 2)
    drafts = torch.tensor([0, 1, 2, 3, 3] * 10)
    verdict = block_verification(
        torch.zeros(50, 3, 2), z, torch.ones(50, 4), drafts, torch.randn(50, 2), torch.ones(50)
    )
    assert torch.equal(verdict.stop, drafts)
    assert torch.isfinite(verdict.noise).all()
