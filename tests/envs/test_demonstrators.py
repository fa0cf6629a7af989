from dataclasses import asdict, replace

import numpy as np
import pytest

import envs

pytest.importorskip("robosuite")

from envs import demonstrators  # noqa: E402
from envs.demonstrators.hand import limit, pointing_down, wrap  # noqa: E402
from envs.demonstrators.lift import LiftStyle  # noqa: E402
from envs.demonstrators.motion import Manner, Pauses  # noqa: E402
from envs.demonstrators.recording import Disturbed, record_episode  # noqa: E402
from envs.errors import UnknownTaskError  # noqa: E402

sim = pytest.mark.sim


@pytest.fixture(scope="module")
def env():
    env = envs.make("lift", terminate_on_success=False)
    yield env
    env.close()


@sim
def test_lifts_the_cube_on_fresh_seeds_and_holds_it(env):
    episodes = [record_episode(env, seed, tail=10) for seed in range(70_000, 70_005)]

    for episode in episodes:
        first = int(np.argmax(episode.rewards > 0))
        assert episode.success
        assert 20 < len(episode.actions) < 120
        assert len(episode.actions) == first + 1 + 10
        assert episode.rewards[first:].min() == 1
        height = episode.observations["object"][:, 2]
        assert height[-1] > height[first]  # it goes on lifting


@sim
def test_commands_are_smooth_and_within_bounds(env):
    actions = record_episode(env, 70_005, tail=10).actions

    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1
    assert np.abs(np.diff(actions[:, :6], axis=0)).max() < 0.31
    assert set(actions[:, 6]) == {-1.0, 1.0}


@sim
@pytest.mark.parametrize("task", ["can", "square"])
def test_puts_things_in_their_place_from_the_start_and_from_the_middle(task):
    env = envs.make(task, terminate_on_success=False)
    whole = record_episode(env, 70_000, tail=10)
    rest = record_episode(env, 70_001, tail=10, opening=Disturbed(60))
    env.close()
    assert whole.success and rest.success
    assert len(whole.actions) < 250 and rest.states[0, 0] > whole.states[0, 0]
    assert np.abs(np.diff(whole.actions[:, :6], axis=0)).max() < 0.31


@sim
def test_recovers_when_the_cube_is_knocked_out_of_the_way(env):
    env.reset(seed=70_006)
    demonstrator = demonstrators.make(env, np.random.default_rng(0))
    success, moved = False, False
    for _ in range(200):
        if not moved and env.robosuite.sim.data.site_xpos[demonstrator._hand._site][2] < 0.86:
            joint = env.robosuite.cube.joints[0]
            pose = env.robosuite.sim.data.get_joint_qpos(joint).copy()
            pose[1] += 0.08
            env.robosuite.sim.data.set_joint_qpos(joint, pose)
            moved = True
        *_, info = env.step(demonstrator.act())
        success |= info["success"]
    assert moved and success


@sim
def test_the_same_generator_gives_the_same_episode(env):
    first, second = record_episode(env, 3, tail=0), record_episode(env, 3, tail=0)
    np.testing.assert_array_equal(first.actions, second.actions)
    assert first.style == second.style


def test_episodes_differ_as_people_do():
    rng = np.random.default_rng(0)
    styles = [asdict(LiftStyle.draw(rng)) for _ in range(200)]

    speeds = [style["speed"] for style in styles]
    assert max(speeds) / min(speeds) > 2
    assert 0.2 < np.mean([style["other_side"] for style in styles]) < 0.6
    assert np.ptp([style["hover"] for style in styles]) > 0.07


def test_people_stop_to_look_now_and_then():
    rng = np.random.default_rng(0)
    pauses = [Manner.draw(rng).pauses for _ in range(300)]
    seen = np.array([[one.at(step) for step in range(400)] for one in pauses])

    starts = np.diff(seen.astype(int), axis=1, prepend=0) == 1
    lengths = [end - first for one in pauses for first, end in one.spans]
    assert 2.6 < starts.sum(axis=1).mean() < 3.8  # of 400 steps; some 125 from one to the next
    assert (starts.sum(axis=1) == 0).any()
    assert (min(lengths), max(lengths)) == (2, 8)


@sim
@pytest.mark.parametrize("task", ["lift", "can"])
def test_the_hand_stands_still_while_its_person_looks(task):
    env = envs.make(task, terminate_on_success=False)
    env.reset(seed=70_007)
    demonstrator = demonstrators.make(env, np.random.default_rng(0))
    pauses = Pauses(((12, 20),))
    style = demonstrator.style
    if task == "lift":
        demonstrator.style = replace(style, pauses=pauses)
    else:
        demonstrator._motion._manner = replace(style.manner, pauses=pauses)
    actions = []
    for _ in range(30):
        actions.append(demonstrator.act())
        env.step(actions[-1])
    env.close()
    commands = np.abs(np.array(actions)[:, :6])
    moving = commands[:, :3].max(axis=1)
    assert moving[11] > 0.1 and moving[25] > 0.1
    assert (commands[[11, 25], 3:].max(axis=1) > 0).all()
    assert (commands[16:20] == 0).all()  # it brakes as smoothly as it moves


@pytest.fixture(scope="module")
def tool_hang():
    env = envs.make("tool_hang", terminate_on_success=False)
    yield env
    env.close()


@sim
def test_hangs_the_tool_and_leaves_it_there(tool_hang):
    episode = record_episode(tool_hang, 70_000, tail=10)

    first = int(np.argmax(episode.rewards > 0))
    assert episode.success
    assert 200 < first < 500
    assert episode.rewards[first:].min() == 1
    assert np.abs(np.diff(episode.actions[:, :6], axis=0)).max() < 0.31
    assembled = episode.observations["object"][:, 42]
    assert 0 < np.argmax(assembled) < first


@sim
def test_hangs_the_tool_after_somebody_else_drove_the_arm(tool_hang):
    tool_hang.reset(seed=70_001)
    rng = np.random.default_rng(0)
    demonstrator, noise = demonstrators.make(tool_hang, rng), np.zeros(6)
    for _ in range(120):
        noise = 0.9 * noise + 0.13 * rng.normal(size=6)
        action = demonstrator.act()
        action[:6] = np.clip(action[:6] + noise, -1, 1)
        tool_hang.step(action)
    demonstrator = demonstrators.make(tool_hang, rng)
    success = False
    for _ in range(500):
        *_, info = tool_hang.step(demonstrator.act())
        success |= info["success"]
        if success:
            break
    assert success


@sim
def test_tasks_without_a_demonstrator_are_named(env, monkeypatch):
    monkeypatch.setattr(env, "task", envs.spec("pusht"))
    with pytest.raises(UnknownTaskError, match="'pusht'.*lift"):
        demonstrators.make(env, np.random.default_rng(0))


def test_hand_helpers():
    hand = pointing_down(0.3, np.zeros(2))
    np.testing.assert_allclose(hand.T @ hand, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(hand), 1)
    np.testing.assert_allclose(hand[:, 2], [0, 0, -1], atol=1e-12)
    assert np.linalg.norm(limit(np.array([3.0, 4.0, 0.0]), 1.0)) == pytest.approx(1)
    assert wrap(3.0, np.pi / 2) == pytest.approx(3.0 - np.pi)
