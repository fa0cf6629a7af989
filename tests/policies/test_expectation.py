"""Which chunk to expect: learned from situations, told without them, the same in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy.errors import CheckpointError
from asd_policy.formats import save_gain
from asd_policy.policies import expectation as module
from asd_policy.policies.expectation import Expectation, fit_expectation

EPISODES, LENGTH, C, D = 12, 10, 6, 8


def situations(seed=0):
    """Episodes that wander, and predictions that follow from where they are and were to go."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(C, D, generator=torch.Generator().manual_seed(1))
    wander = 0.4 * torch.randn(EPISODES, LENGTH, C, generator=generator)
    condition = (torch.randn(EPISODES, 1, C, generator=generator) + wander.cumsum(1)).flatten(0, 1)
    chunks = torch.randn(EPISODES * LENGTH, D, generator=generator)
    previous = [None if i % LENGTH == 0 else chunk for i, chunk in enumerate(chunks)]
    heard = torch.tensor([[p is not None] for p in previous])
    predictions = torch.tanh(condition @ mixing) + 0.3 * chunks * heard
    episode = torch.arange(EPISODES).repeat_interleave(LENGTH)
    return condition, previous, predictions[:, None], episode


def test_foretells_episodes_that_it_has_not_seen():
    fitted, left_out = fit_expectation(*situations())
    expectation = fitted.to(torch.device("cpu"))
    condition, previous, predictions, _ = situations(seed=2)
    predictions = predictions[:, 0]
    spread = (predictions - predictions.mean(0)).norm(dim=1).mean()
    missed = (expectation(condition, previous) - predictions).norm(dim=1)
    cold = torch.tensor([p is None for p in previous])
    assert missed.mean() < 0.6 * spread and missed[cold].mean() < 0.8 * spread
    told = (left_out - situations()[2][:, 0]).norm(dim=1).mean()
    assert float(told) == pytest.approx(float(missed.mean()), rel=0.25)


@pytest.mark.parametrize("persistence", [0.0, 1.0])
def test_what_is_left_out_of_a_fit_is_left_out(persistence, monkeypatch):
    monkeypatch.setattr(module, "_WIDTHS", (4.0,))
    monkeypatch.setattr(module, "_RIDGES", (0.1,))
    monkeypatch.setattr(module, "_PERSISTENCES", (persistence,))
    condition, previous, predictions, episode = situations()
    fitted, left_out = fit_expectation(condition, previous, predictions, episode)
    expectation = fitted.to(torch.device("cpu"))
    observed = torch.cdist(*[condition * expectation.condition_scale] * 2).square()
    planned = torch.cdist(*[expectation.previous] * 2).square()
    both = expectation.known[:, None] * expectation.known
    kernel = (-observed).exp() * (1 + both * (-planned).exp())
    chunks = [torch.zeros(D) if p is None else p for p in previous]
    base = persistence * torch.stack(chunks) + expectation.mean
    for number in (0, 7):
        own, rest = episode == number, episode != number
        ridge = 0.1 * torch.eye(int(rest.sum()))
        left = predictions[rest, 0] - base[rest]
        weights = torch.linalg.solve(kernel[rest][:, rest] + ridge, left)
        told = kernel[own][:, rest] @ weights + base[own]
        assert left_out[own].numpy() == pytest.approx(told.numpy(), abs=5e-3)


def test_a_previous_chunk_that_says_much_is_corrected(monkeypatch):
    condition, previous, predictions, episode = situations()
    known = torch.tensor([p is not None for p in previous])
    chunks = torch.stack([torch.zeros(D) if p is None else p for p in previous])
    follows = chunks + 0.1 * torch.tanh(predictions[:, 0])

    def missed():
        fitted, left_out = fit_expectation(condition, previous, follows[:, None], episode)
        return float(fitted.persistence), (left_out - follows)[known].norm(dim=1).mean()

    persistence, corrected = missed()
    assert persistence == 1
    monkeypatch.setattr(module, "_PERSISTENCES", (0.0,))
    assert corrected < 0.85 * missed()[1]


def test_predictions_that_say_nothing_are_passed_over():
    condition, previous, predictions, episode = situations()
    noise = torch.randn(len(condition), 3, D, generator=torch.Generator().manual_seed(5)).sign()
    fitted, left_out = fit_expectation(condition, previous, predictions, episode)
    later, still = fit_expectation(
        condition, previous, torch.cat([3 * noise, predictions], 1), episode
    )
    assert torch.equal(left_out, still)
    assert all(torch.equal(v, later.tensors()[k]) for k, v in fitted.tensors().items())


def test_a_situation_is_told_alike_whatever_the_others():
    expectation = fit_expectation(*situations())[0].to(torch.device("cpu"))
    condition, previous, *_ = situations(seed=2)
    together = expectation(condition, previous)
    alone = [expectation(condition[i : i + 1], [previous[i]])[0] for i in range(len(condition))]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize(
    "name", ["condition", "known", "weights", "mean", "previous_scale", "persistence"]
)
@pytest.mark.parametrize(
    "spoil",
    [lambda t: t[:-1] if t.ndim else t[None], lambda t: t * torch.nan, torch.Tensor.long],
)
def test_refuses_tensors_that_no_fit_gives(name, spoil):
    tensors = fit_expectation(*situations())[0].tensors()
    with pytest.raises(CheckpointError, match="expectation: "):
        Expectation(**{**tensors, name: spoil(tensors[name])})


def observe(policy):
    policy.reset(seed=0)
    return policy.act({"keypoint": torch.full((9, 2), 200.0), "agent_pos": torch.full((2,), 99.0)})


def test_warm_starts_begin_from_it_and_nothing_else_does(calibrated_folder, tiny_gain):
    told = asd_policy.load_policy(calibrated_folder, device="cpu")
    save_gain(tiny_gain, calibrated_folder, {})
    untold = asd_policy.load_policy(calibrated_folder, device="cpu")
    assert told.planner.expectation is not None and untold.planner.expectation is None
    for sampler in ("ddpm", "gain:6", "asd-paper:6"):
        same = [observe(policy.with_sampler(sampler)) for policy in (told, untold)]
        assert np.array_equal(*same)
    for sampler in ("asd", "asd:6", "refine+warm:6"):
        pair = [policy.with_sampler(sampler) for policy in (told, untold)]
        assert not np.array_equal(*map(observe, pair)), "another path to the same distribution"
        # Without it an episode's first chunk begins with a call for one step.
        assert pair[1].last_plan.accepted[0][0] == 1
    history = pair[0].last_plan.history
    (chunk,) = told.planner.expect(history, [None])
    assert chunk.shape == (16, 3)
    assert untold.planner.expect(history, [None]) == [None]


def test_one_of_another_policy_is_refused(tiny_folder, tiny_gain):
    expectation, _ = fit_expectation(*situations())
    save_gain(tiny_gain, tiny_folder, {}, expectation)
    with pytest.raises(CheckpointError, match=r"of sizes \(40, 48\), got \(6, 8\)"):
        asd_policy.load_policy(tiny_folder, device="cpu")
