"""``Policy``: history, queue, noise and errors, as a control loop sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy.errors import EpisodeError, ObservationError, PlanningError, SamplerError

TO, TA = 2, 8


def frame(seed, n=None):
    rng = np.random.default_rng(seed)
    lead = () if n is None else (n,)
    return {
        "keypoint": rng.uniform(100, 400, (*lead, 9, 2)).astype(np.float32),
        "agent_pos": rng.uniform(100, 400, (*lead, 2)).astype(np.float32),
    }


def rows(frames):
    return {key: np.stack([f[key] for f in frames]) for key in frames[0]}


def run(policy, seed, steps, repeat=0, offset=0):
    policy.reset(seed=seed, repeat=repeat)
    return np.stack([policy.act(frame(offset + t)) for t in range(steps)])


@pytest.fixture(params=["ddpm", "asd-paper:6", "carry:6", "refine:6", "asd", "asd+block:6"])
def policy(request, calibrated_folder):
    return asd_policy.load_policy(calibrated_folder, sampler=request.param, device="cpu")


@pytest.fixture
def asd(tiny_folder):
    return asd_policy.load_policy(tiny_folder, device="cpu")


def test_an_episode_is_a_function_of_its_seed(policy):
    first = run(policy, 7, 20)
    assert first.shape == (20, 3) and first.dtype == np.float32
    assert np.array_equal(run(policy, 7, 20), first)
    assert not np.array_equal(run(policy, 8, 20), first)
    assert not np.array_equal(run(policy, 7, 20, repeat=1), first)
    assert np.array_equal(run(policy.with_sampler(policy.sampler), 7, 20), first)


def test_alone_or_in_a_batch_bit_for_bit(policy):
    """Episodes join and leave, so that their chunks run out at different times."""
    alone = [run(policy, seed, 30, repeat=seed % 2, offset=100 * seed) for seed in (1, 2, 3)]
    policy.reset(seed=[1, 2], repeat=[1, 0])
    together = {1: [], 2: [], 3: []}
    slots, time = [1, 2], {1: 0, 2: 0, 3: 0}
    for t in range(60):
        if t == 30:  # Episode 1 has had its 30 steps; its slot takes episode 3.
            policy.restart(0, seed=3, repeat=1)
            slots[0] = 3
        acting = [0] if t % 7 in (2, 5) and t < 30 or t >= 43 else [0, 1]
        acting = [slot for slot in acting if time[slots[slot]] < 30]
        if not acting:
            continue
        observation = rows([frame(100 * slots[s] + time[slots[s]]) for s in acting])
        for slot, action in zip(acting, policy.act(observation, acting), strict=True):
            together[slots[slot]].append(action)
            time[slots[slot]] += 1
    for seed in (1, 2, 3):
        length = len(together[seed])
        assert length > 2 * TA
        assert np.array_equal(np.stack(together[seed]), alone[seed - 1][:length])


def test_plans_when_the_queue_is_empty_and_only_then(asd):
    asd.reset(seed=0)
    for t in range(3 * TA):
        before = asd.last_plan
        asd.act(frame(t))
        assert (asd.last_plan is not before) == (t % TA == 0)
    report = asd.episode_report()
    assert report.chunks == 3
    assert asd.last_plan.calls[0] < report.calls < 3 * 20
    assert report.evaluations >= 3 * 20
    assert asd.last_plan.seconds > 0
    assert sum(asd.last_plan.accepted[0]) == 20


def test_executes_the_slice_that_begins_at_the_newest_frame(asd):
    asd.reset(seed=0)
    actions = np.stack([asd.act(frame(t)) for t in range(TA)])
    assert np.array_equal(actions, asd.last_plan.chunks[0, TO - 1 : TO - 1 + TA])


def test_the_network_sees_the_newest_frames_the_first_repeated(asd, monkeypatch):
    histories = []
    honest = asd.planner.plan
    monkeypatch.setattr(
        asd.planner,
        "plan",
        lambda history, *rest: histories.append(history) or honest(history, *rest),
    )
    asd.reset(seed=0)
    for t in range(TA + 1):
        asd.act(frame(t))
    flat = [np.concatenate([v.ravel() for v in frame(t).values()]) for t in range(TA + 1)]
    assert np.array_equal(histories[0][0], [flat[0], flat[0]])
    assert np.array_equal(histories[1][0], [flat[TA - 1], flat[TA]])


def test_actions_are_in_the_environments_units(asd, tiny_checkpoint):
    """Normalised chunks are clipped to [-1, 1]; the environment's range is that undone."""
    actions = run(asd, 3, 40)
    normalizer = tiny_checkpoint.normalizers["action"]
    bounds = normalizer.unnormalize(torch.tensor([[-1.0] * 3, [1.0] * 3])).numpy()
    assert (actions >= bounds[0] - 1e-6).all() and (actions <= bounds[1] + 1e-6).all()
    assert np.ptp(actions[:, 0]) > 1


BROKEN = {
    "not a dictionary": (lambda f: [1, 2], "expected a dictionary"),
    "a missing key": (lambda f: {"keypoint": f["keypoint"]}, r"missing keys \['agent_pos'\]"),
    "another shape": (
        lambda f: {**f, "agent_pos": np.zeros(3)},
        r"agent_pos: expected shape \(2,\), got \(3,\)",
    ),
    "a batch in an episode": (
        lambda f: {k: v[None] for k, v in f.items()},
        r"expected shape \(9, 2\), got \(1, 9, 2\).*list of seeds",
    ),
    "text": (lambda f: {**f, "agent_pos": np.array(["a", "b"])}, "agent_pos: expected real"),
    "booleans": (lambda f: {**f, "agent_pos": np.array([True, False])}, "expected real numbers"),
    "complex": (lambda f: {**f, "agent_pos": np.zeros(2, complex)}, "expected real numbers"),
    "objects": (lambda f: {**f, "agent_pos": [None, 1.0]}, "expected real numbers"),
    "ragged": (lambda f: {**f, "agent_pos": [[1.0], [1.0, 2.0]]}, "expected an array"),
    "NaN": (lambda f: {**f, "agent_pos": np.array([1, np.nan])}, "NaN or infinity in 1 of 2"),
    "infinity": (lambda f: {**f, "agent_pos": np.array([1, -np.inf])}, "NaN or infinity"),
    "beyond float32": (lambda f: {**f, "agent_pos": np.array([1, 1e300])}, "NaN or infinity"),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("at", [0, 3, TA])
def test_a_bad_observation_is_named_and_leaves_the_episode_as_it_was(asd, spoil, message, at):
    expected = run(asd, 5, 20)
    asd.reset(seed=5)
    actions = []
    for t in range(20):
        if t == at:
            plan = asd.last_plan
            with pytest.raises(ObservationError, match=message):
                asd.act(spoil(frame(t)))
            assert asd.last_plan is plan
        actions.append(asd.act(frame(t)))
    assert np.array_equal(np.stack(actions), expected)


def test_one_bad_row_of_a_batch_changes_no_episode(asd):
    def batch(t):
        return frame(t, n=3)

    asd.reset(seed=[1, 2, 3])
    expected = [asd.act(batch(t)) for t in range(12)]
    asd.reset(seed=[1, 2, 3])
    actions = []
    for t in range(12):
        spoiled = batch(t)
        spoiled["agent_pos"][1, 0] = np.nan
        with pytest.raises(ObservationError):
            asd.act(spoiled)
        actions.append(asd.act(batch(t)))
    assert np.array_equal(actions, expected)


def test_a_failed_planning_leaves_the_episode_as_it_was(asd, monkeypatch):
    expected = run(asd, 5, 12)
    asd.reset(seed=5)
    actions = [asd.act(frame(t)) for t in range(TA)]
    weight = asd.planner._action.offset.clone()
    asd.planner._action.offset.fill_(float("nan"))
    with pytest.raises(PlanningError, match="NaN or infinity"):
        asd.act(frame(TA))
    asd.planner._action.offset.copy_(weight)
    actions += [asd.act(frame(t)) for t in range(TA, 12)]
    assert np.array_equal(np.stack(actions), expected)


def test_unused_entries_lists_and_wider_types_are_welcome(asd):
    expected = run(asd, 5, 3)
    asd.reset(seed=5)
    for t in range(3):
        observation = {k: v.astype(np.float64) for k, v in frame(t).items()}
        observation["agent_pos"] = observation["agent_pos"].tolist()
        observation["camera"] = np.zeros((96, 96, 3), np.uint8)
        assert np.array_equal(asd.act(observation), expected[t])


def test_episodes_must_exist(asd):
    with pytest.raises(EpisodeError, match="call reset"):
        asd.act(frame(0))
    with pytest.raises(EpisodeError, match="at least one seed"):
        asd.reset(seed=[])
    with pytest.raises(EpisodeError, match="2 seeds and 3 repeats"):
        asd.reset(seed=[1, 2], repeat=[0, 0, 0])
    asd.reset(seed=1)
    with pytest.raises(EpisodeError, match="for a batch"):
        asd.act(frame(0), episodes=[0])
    asd.reset(seed=[1, 2])
    for episodes, message in (([2], "no episode 2"), ([0, 0], "different"), ([], "one or more")):
        with pytest.raises(EpisodeError, match=message):
            asd.act(frame(0, n=max(1, len(episodes))), episodes=episodes)
    with pytest.raises(EpisodeError, match="no episode 5"):
        asd.restart(5, seed=0)


def test_seeds_are_applied_or_refused_never_ignored(asd):
    for seed in (-1, 1.5, "7", [1, -1]):
        with pytest.raises((SamplerError, TypeError)):
            asd.reset(seed=seed)
    asd.reset()
    first = np.stack([asd.act(frame(t)) for t in range(10)])
    assert np.array_equal(run(asd, asd.seeds[0], 10), first)
    asd.reset()
    assert not np.array_equal(np.stack([asd.act(frame(t)) for t in range(10)]), first)


def test_two_policies_share_weights_but_no_state(asd):
    other = asd.with_sampler("ddpm")
    expected = run(asd, 1, 10)
    asd.reset(seed=1)
    other.reset(seed=9)
    actions = []
    for t in range(10):
        actions.append(asd.act(frame(t)))
        other.act(frame(50 + t))
    assert other.planner is asd.planner
    assert np.array_equal(np.stack(actions), expected)


def test_a_chunk_is_planned_from_the_one_before(asd):
    """The last plan says what it began with: the previous chunk, its executed part dropped."""
    asd.reset(seed=0)
    plans = []
    for t in range(2 * TA):
        asd.act(frame(t))
        if t % TA == 0:
            plans.append(asd.last_plan)
    first, second = plans
    assert first.previous == [None]
    action = asd.planner._action
    expected = action.normalize(torch.from_numpy(first.chunks[0]))
    expected = torch.cat([expected[TA:], expected[-1:].expand(TA, -1)])
    assert torch.allclose(second.previous[0], expected, atol=1e-5)
    assert np.array_equal(second.history[0, -1, :18], frame(TA)["keypoint"].ravel())
