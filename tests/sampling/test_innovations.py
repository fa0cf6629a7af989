"""Chains of every exact sampler have white noise, and errors too small for their ends do not."""

from __future__ import annotations

import pytest
import torch
from innovations import innovations
from problems import chains
from test_exactness import EXACT

from asd_policy.sampling import drafts, speculative

CHAINS = 3000
SIGNIFICANCE = 1e-4


@pytest.mark.parametrize("sampler", EXACT)
def test_innovations_are_white(sampler):
    found = innovations(chains()["cosine"], sampler, CHAINS, seed=7)
    assert found.pvalue() > SIGNIFICANCE


@pytest.mark.parametrize("chain", ["linear-large", "edm"])
@pytest.mark.parametrize("sampler", ["refine:12", "asd", "asd:auto", "asd+block:6"])
def test_innovations_are_white_on_every_chain(chain, sampler):
    found = innovations(chains()[chain], sampler, CHAINS, seed=7)
    assert found.pvalue() > SIGNIFICANCE


@pytest.mark.parametrize("sampler", ["refine:12", "asd", "asd+block:6"])
def test_innovations_are_white_where_predictions_are_clipped(sampler):
    found = innovations(chains()["cosine"], sampler, CHAINS, seed=7, clip=0.7)
    assert found.pvalue() > SIGNIFICANCE


def renew_one_step_too_late(monkeypatch):
    honest = speculative.SpeculativeState._renew

    def planted(state, decided, noise):
        after = (decided + 1).clamp(max=state.num_steps - 1)
        at = after[:, None, None].expand(-1, 1, state.z.shape[2])
        honest(state, after, state.z.gather(1, at)[:, 0])

    monkeypatch.setattr(speculative.SpeculativeState, "_renew", planted)


def follow_a_path_that_is_not_clipped(monkeypatch):
    honest = drafts.Drafts.propose

    def planted(self, x, position, step):
        guess, states = honest(self, x, position, step)
        return guess.clamp(-0.6, 0.6), states

    monkeypatch.setattr(drafts.Drafts, "propose", planted)


def end_windows_at_loud_noise(monkeypatch):
    honest = speculative.SpeculativeState._verify

    def planted(state, step, length):
        loud = state.z.square().sum(-1).gather(1, step) > 6
        first = torch.where(loud.any(1), loud.long().argmax(1) + 1, step.shape[1])
        return honest(state, step, torch.minimum(length, first))

    monkeypatch.setattr(speculative.SpeculativeState, "_verify", planted)


def accept_a_little_too_often(monkeypatch):
    honest = speculative.reflection_coupling
    monkeypatch.setattr(
        speculative, "reflection_coupling", lambda difference, z, u: honest(difference, z, u**1.3)
    )


@pytest.mark.parametrize(
    ("sampler", "plant", "clip"),
    [
        ("carry+block:12", renew_one_step_too_late, None),
        ("refine:12", follow_a_path_that_is_not_clipped, None),
        ("carry:12", end_windows_at_loud_noise, None),
        ("asd", accept_a_little_too_often, None),
        ("asd:auto", accept_a_little_too_often, None),
    ],
)
def test_a_planted_error_is_caught(sampler, plant, clip, monkeypatch):
    plant(monkeypatch)
    found = innovations(chains()["edm"], sampler, CHAINS, seed=7, clip=clip)
    assert found.pvalue() < SIGNIFICANCE


def test_auto_windows_draft_here():
    found = innovations(chains()["cosine"], "asd:auto", 100, seed=7)
    assert max(found.calls) < chains()["cosine"].num_steps
