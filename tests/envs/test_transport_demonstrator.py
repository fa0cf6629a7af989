from dataclasses import asdict

import numpy as np
import pytest

import envs

pytest.importorskip("robosuite")

from envs import demonstrators  # noqa: E402
from envs.demonstrators.recording import record_episode  # noqa: E402
from envs.demonstrators.transport_scene import Hammer  # noqa: E402
from envs.demonstrators.transport_style import TransportStyle  # noqa: E402

sim = pytest.mark.sim


@pytest.fixture(scope="module")
def env():
    env = envs.make("transport", terminate_on_success=False)
    yield env
    env.close()


@sim
def test_transports_the_hammer_and_lets_go_of_it(env):
    episode = record_episode(env, 71_000, tail=10)

    assert episode.success
    assert 200 < len(episode.actions) < 500
    assert np.abs(np.diff(episode.actions.reshape(-1, 2, 7)[..., :6], axis=0)).max() < 0.31
    left, right = episode.observations["robot1_gripper_qpos"][-1]
    assert left - right > 0.05  # wider than the handle


@sim
def test_takes_over_from_somebody_who_drives_badly(env):
    env.reset(seed=71_001)
    rng = np.random.default_rng(0)
    first = demonstrators.make(env, rng)
    push = np.zeros(14)
    for _ in range(60):
        push = 0.9 * push + 0.1 * rng.normal(size=14)
        push[[6, 13]] = 0.0
        env.step((first.act() + push).clip(-1, 1).astype(np.float32))

    second = demonstrators.make(env, rng)
    success = False
    for _ in range(550):
        *_, info = env.step(second.act())
        success |= info["success"]
        if success:
            break
    assert success


def test_styles_differ_and_leave_room_for_two_hands():
    rng = np.random.default_rng(0)
    styles = [TransportStyle.draw(rng) for _ in range(100)]

    assert np.ptp([style.park[0] for style in styles]) > 0.05
    assert np.ptp([style.handover for style in styles], axis=0).min() > 0.02
    assert min(style.take_along - style.pick_along for style in styles) > 0.1
    assert len({str(asdict(style)) for style in styles}) == 100


def test_hammer_is_measured_along_its_handle():
    hammer = Hammer(np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.6, 0.8]))

    np.testing.assert_allclose(hammer.nearest(np.array([0.1, 1.03, 1.04])), [0.0, 1.03, 1.04])
    np.testing.assert_allclose(hammer.along(hammer.at(-0.05)), -0.05)
    assert hammer.turn == pytest.approx(0.0)
    assert hammer.low < 1.0 - 0.8 * 0.1
    assert hammer.inside(np.array([0.0, 1.0, 0.8]))
    assert not hammer.inside(np.array([0.0, 1.1, 0.8]))
