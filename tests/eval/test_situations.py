"""Situations: planning in one again is planning as the policy did."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from golden import fixture, scaler_of

import asd_policy
from eval.situations import RECORDED_WITH, Situations, record

pytest_plugins = ["eval_fixtures"]


class Seen(gymnasium.Env):
    """Whatever the actions, an episode shows what its seed says."""

    def __init__(self, spec):
        self.entries = spec.observations

    def reset(self, *, seed=None, options=None):
        self.rng = np.random.default_rng(seed)
        return self._frame(), {}

    def step(self, action):
        return self._frame(), 0.0, False, False, {"success": False}

    def _frame(self):
        return {e.key: self.rng.normal(0, 0.3, e.shape).astype(np.float32) for e in self.entries}


@pytest.fixture(params=["repeated", "growing"])
def policy(request, checkpoint, tmp_path):
    if request.param == "repeated":
        return asd_policy.load_policy(checkpoint, device="cpu")
    scaler = scaler_of("beso_kitchen", tmp_path)
    return asd_policy.load_policy(fixture("beso_kitchen/c_beso_1"), device="cpu", scaler=scaler)


def test_a_situation_is_planned_in_as_the_policy_did(policy, tmp_path):
    """Of a growing window the actions executed are part of it: its chains begin with them."""
    steps = 7 * policy.spec.action_horizon
    recorded = record(policy, lambda: Seen(policy.spec), 3, 7, steps)
    recorded.save(tmp_path / "situations.safetensors")
    situations = Situations.load(tmp_path / "situations.safetensors")
    env, own = Seen(policy.spec), policy.with_sampler(RECORDED_WITH)
    observation, _ = env.reset(seed=3)
    own.reset(seed=3)
    plans = []
    for step in range(steps):
        action = own.act(observation)
        if step % policy.spec.action_horizon == 0:
            plans.append(own.last_plan)
        observation, *_ = env.step(action)
    planner = policy.planner
    for row, plan in enumerate(plans):
        noise = situations.noise([row], planner.chain.num_steps, planner.chunk_shape)
        previous = situations.known([row])
        again = planner.plan(situations.history[[row]], noise, own.sampler, previous)
        assert np.array_equal(again.actions, plan.chunks)
        assert again.result.calls == plan.calls
    begun = [len(plan.begun[0]) for plan in plans]
    grows = policy.spec.context == "growing"
    last = policy.spec.obs_horizon - 1
    assert begun == [min(row, last) if grows else 0 for row in range(len(plans))]


def test_a_chunk_is_not_shifted_while_its_window_grows(tmp_path):
    """An action stays beside its frame, and frames move on only when the window is full."""
    scaler = scaler_of("beso_kitchen", tmp_path)
    policy = asd_policy.load_policy(fixture("beso_kitchen/c_beso_1"), device="cpu", scaler=scaler)
    env = Seen(policy.spec)
    observation, _ = env.reset(seed=0)
    policy.reset(seed=0)
    for frames in range(policy.spec.obs_horizon + 2):
        before = policy._episodes[0].chunk
        policy.act(observation)
        (previous,) = policy.last_plan.previous
        if before is not None:
            moved = frames >= policy.spec.obs_horizon
            assert torch.equal(previous[: -1 if moved else None], before[int(moved) :])
        observation, *_ = env.step(None)
