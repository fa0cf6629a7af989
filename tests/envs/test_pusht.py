import warnings
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.errors import ActionError, EpisodeError, RenderError
from envs.pusht_keypoints import block_keypoints

pytest.importorskip("gym_pusht")

RECORDED = Path(__file__).resolve().parents[3] / "shared/data/pusht/pusht_cchi_v7_replay.zarr"


@pytest.fixture
def env():
    env = envs.make("pusht")
    yield env
    env.close()


def rollout(env, seed, steps=20):
    """Observations of one seeded episode under fixed random actions."""
    observation, _ = env.reset(seed=seed)
    actions = np.random.default_rng(1).uniform(0, 512, (steps, 2)).astype(np.float32)
    return [observation] + [env.step(action)[0] for action in actions]


def place(env, agent, block):
    """Put the pusher and the block somewhere, at rest."""
    env.simulator.agent.position = tuple(map(float, agent))
    env.simulator.agent.velocity = (0, 0)
    env.simulator.block.angle = float(block[2])
    env.simulator.block.position = tuple(map(float, block[:2]))
    for body in (env.simulator.agent, env.simulator.block):
        env.simulator.space.reindex_shapes_for_body(body)


def test_keeps_gymnasiums_contract(env):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on bounds and on registration
        check_env(env)


def test_a_seed_gives_the_same_episode_bit_for_bit(env):
    first = rollout(env, seed=3)
    again = rollout(env, seed=3)
    fresh = envs.make("pusht")
    elsewhere = rollout(fresh, seed=3)
    fresh.close()

    for one, two, three in zip(first, again, elsewhere, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
            np.testing.assert_array_equal(one[key], three[key])


def test_reset_without_a_seed_draws_on_and_names_the_seed(env):
    env.reset(seed=0)
    first, info = env.reset()
    second, _ = env.reset()
    replayed, _ = env.reset(seed=info["seed"])

    assert not np.array_equal(first["keypoint"], second["keypoint"])
    np.testing.assert_array_equal(first["keypoint"], replayed["keypoint"])


def test_observation_is_the_pose_through_the_one_definition(env):
    observation, info = env.reset(seed=5)

    expected = block_keypoints(info["block_pose"]).astype(np.float32)
    np.testing.assert_array_equal(observation["keypoint"], expected)
    assert list(observation) == ["keypoint", "agent_pos"]
    assert env.observation_space.contains(observation)


def test_covering_the_goal_ends_the_episode_with_reward_one(env):
    env.reset(seed=0)
    place(env, agent=(40, 40), block=(256.0, 256.0, np.pi / 4))

    _, reward, terminated, truncated, info = env.step(np.array([40, 40], dtype=np.float32))

    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["success"] and info["coverage"] > 0.99
    with pytest.raises(EpisodeError, match="reset"):
        env.step(np.array([40, 40], dtype=np.float32))


def test_an_episode_is_truncated_at_the_limit(env):
    env.reset(seed=0)
    still = np.array([20, 20], dtype=np.float32)
    ends = [env.step(still)[2:4] for _ in range(300)]

    assert ends[-1] == (False, True)
    assert not any(any(end) for end in ends[:-1])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3), r"shape \(2,\), got \(3,\)"),
        (np.zeros((1, 2)), "not a chunk"),
        (np.array([np.nan, 0]), r"components \[0\]"),
        ("left", "2 numbers, got str"),
    ],
)
def test_bad_actions_are_named(env, action, message):
    env.reset(seed=0)
    with pytest.raises(ActionError, match=message):
        env.step(action)


def test_draws_on_demand_only(monkeypatch):
    env = envs.make("pusht", render_mode="rgb_array", width=96, height=64)
    drawn = []
    draw = env.simulator._draw
    monkeypatch.setattr(env.simulator, "_draw", lambda: drawn.append(1) or draw())

    rollout(env, seed=0, steps=3)
    assert not drawn
    frame = env.render()
    env.close()

    assert drawn and frame.shape == (64, 96, 3) and frame.dtype == np.uint8


def test_rendering_must_be_asked_for(env):
    env.reset(seed=0)
    with pytest.raises(RenderError, match="render_mode='rgb_array'"):
        env.render()


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded demonstrations are not here")
def test_recorded_actions_give_the_recorded_states(env):
    zarr = pytest.importorskip("zarr")
    group = zarr.open(str(RECORDED), mode="r")
    end = int(group["meta/episode_ends"][0])
    state, action = group["data/state"][:end].astype(np.float64), group["data/action"][:end]

    env.reset(seed=0)
    place(env, agent=state[0, :2], block=state[0, 2:])
    for step in range(end - 1):
        observation, _, _, _, info = env.step(action[step])
        np.testing.assert_allclose(observation["agent_pos"], state[step + 1, :2], atol=1e-3)
        np.testing.assert_allclose(info["block_pose"][:2], state[step + 1, 2:4], atol=1e-2)


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded demonstrations are not here")
def test_images_are_as_chi_et_al_recorded_them():
    import zarr

    group = zarr.open(str(RECORDED), mode="r")
    env = envs.make("pusht", images={"image": (96, 96)})
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for step in (0, 5000, 12345):
        state, recorded = group["data/state"][step], group["data/img"][step]
        place(env, state[:2], state[2:])
        env.simulator.space.step(1e-9)  # what is drawn follows the bodies in a step
        raw = {"block_pose": state[2:], "pos_agent": state[:2]}
        drawn = env._observe(raw)["image"]
        assert drawn.dtype == np.uint8
        assert np.abs(drawn - recorded).mean() < 0.3  # of 255; edges of shapes
    env.close()


def test_an_image_of_another_name_is_refused():
    with pytest.raises(RenderError, match="expected no key but 'image', got"):
        envs.make("pusht", images={"top": (96, 96)})
