"""Planned windows are the cheapest there are, and shrink as rows get dear."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from problems import Mixture, prior, random_noise

from asd_policy.errors import SamplerError
from asd_policy.sampling import CostTable, Gain, GaussianChain, Prior, parse_sampler, sample
from asd_policy.sampling.windows import plan_windows, priced

CHAIN = GaussianChain.ddpm(8)


def gain(scale=0.4):
    generator = torch.Generator().manual_seed(0)
    error = scale * (0.5 + torch.rand(9, 8, generator=generator))
    return Gain(torch.eye(3), torch.zeros(8, 3), error)


def cheapest(chain, known, cost):
    """The same problem, solved one place and one outcome at a time."""
    k = chain.num_steps
    gap = [0.0 if s == 0 else float(b / s) for b, s in zip(chain.b, chain.s, strict=True)]
    error = known.error.double().tolist()

    def accept(j, last):
        return math.erfc(gap[j] * error[last + 1][j] / math.sqrt(8))

    @lru_cache(None)
    def value(i, last):
        if i == k:
            return 0.0
        return min(expected(i, last, w) for w in range(1, k - i + 1))

    def expected(i, last, w):
        total, stand = cost[w - 1], 1.0
        after = max(last, i + w - 1)
        for row in range(w - 1):
            p = accept(i + row, last)
            total += stand * (1 - p) * value(i + row + 1, after)
            stand *= p
        return total + stand * value(i + w, after)

    return value(0, -1), cost[0] + value(1, 0)


@pytest.mark.parametrize("slope", [0.0, 0.03, 0.3, 3.0])
def test_no_windows_are_cheaper(slope):
    cost = 1 + slope * np.arange(1, 9)
    plan = plan_windows(CHAIN, gain(), cost)
    warm, cold = cheapest(CHAIN, gain(), cost)
    assert plan.cost == pytest.approx(warm)
    assert plan.cold_cost == pytest.approx(cold)


def test_windows_grow_where_rows_are_free_and_shrink_where_they_are_dear():
    free = plan_windows(CHAIN, gain(), np.ones(8)).windows
    dear = plan_windows(CHAIN, gain(), np.arange(1.0, 9.0)).windows
    assert free[0, 0] == 8
    assert dear[0, 0] <= 2
    assert (dear <= free).all()


def test_windows_of_long_chains_are_bounded():
    """So that planning a chain of 1000 steps takes seconds."""
    known = Gain(torch.eye(3), torch.zeros(140, 3), torch.full((141, 140), 1e-3))
    plan = plan_windows(GaussianChain.ddpm(140), known, np.ones(140))
    assert plan.windows.max() == plan.windows[0, 0] == 128
    assert plan.cost < 4


def test_the_expected_cost_is_what_sampling_costs():
    chain = GaussianChain.ddpm(30)
    known = prior(chain, 2000)
    noise = random_noise(2000, chain, (2,), seed=0)
    result = sample(Mixture(chain).denoise, chain, noise, "gain", known)
    spent = np.mean(result.calls) + 0.01 * np.mean(result.evaluations)
    expected = plan_windows(chain, known.gain, priced(30)).cold_cost
    assert spent == pytest.approx(expected, rel=0.25)


def test_a_cost_table_between_and_beyond_its_rows():
    table = CostTable((1, 2, 4), (1.0, 0.9, 3.0))
    assert table(np.array([1, 2, 3, 4, 8])).tolist() == [1.0, 1.0, 2.0, 3.0, 6.0]
    for rows, seconds in [((1,), (1.0,)), ((2, 4), (1.0, 2.0)), ((1, 1), (1.0, 2.0)),
                          ((1, 2), (1.0, 0.0)), ((1, 2), (1.0,))]:  # fmt: skip
        with pytest.raises(SamplerError, match="cost table"):
            CostTable(rows, seconds)


def test_rounds_that_cost_time_of_their_own_make_windows_longer():
    known = Prior(gain(), costs=CostTable((1, 8), (1.0, 3.0)))
    dear = Prior(gain(), costs=CostTable((1, 8), (1.0, 3.0), round_seconds=5.0))
    short, long = (p.windows(CHAIN, "auto", 1).windows for p in (known, dear))
    assert (long >= short).all() and (long > short).any()


def test_auto_leaves_speculation_where_it_cannot_pay():
    """Where a row costs the same alone or in a batch, 30 rows one by one are the least."""
    chain = GaussianChain.ddpm(30)
    known = prior(chain, 4)
    noise = random_noise(4, chain, (2,), seed=0)
    denoise = Mixture(chain).denoise
    saturated = Prior(known.gain, costs=CostTable((1, 100), (1.0, 100.0)))
    idle = Prior(known.gain, costs=CostTable((1, 100), (1.0, 1.01)))
    assert sample(denoise, chain, noise, "asd:auto", saturated).calls == [30] * 4
    assert np.mean(sample(denoise, chain, noise, "asd:auto", idle).calls) < 12


def test_what_never_starts_warm_is_judged_by_its_cold_start():
    """Somewhere between rows that are free and rows that are dear a warm start alone pays."""
    verdicts = set()
    for slope in np.linspace(0, 1, 101):
        known = Prior(gain(), costs=CostTable((1, 8), (1.0, 1.0 + 7 * slope)))
        warm, cold = (
            known.worth_drafting(CHAIN, parse_sampler(name), 1)
            for name in ("asd:auto", "gain:auto")
        )
        verdicts.add((warm, cold))
    assert verdicts == {(True, True), (True, False), (False, False)}


def test_auto_says_what_it_lacks():
    chain = GaussianChain.ddpm(30)
    noise, denoise = random_noise(1, chain, (2,), seed=0), Mixture(chain).denoise
    with pytest.raises(SamplerError, match=r"run `python -m eval\.calibrate"):
        sample(denoise, chain, noise, "asd:auto", Prior(costs=CostTable((1, 2), (1.0, 1.0))))
    with pytest.raises(SamplerError, match="needs to know what calls cost"):
        sample(denoise, chain, noise, "asd:auto", Prior(prior(chain, 1).gain))
    # Without a gain the default sampler still runs, as refine with a fixed window.
    plain = sample(denoise, chain, noise, "asd")
    assert torch.equal(plain.x, sample(denoise, chain, noise, "refine:24").x)


def test_refuses_costs_of_another_chain():
    with pytest.raises(SamplerError, match="expected 8 costs and a gain of 8 steps"):
        plan_windows(CHAIN, gain(), np.ones(9))
