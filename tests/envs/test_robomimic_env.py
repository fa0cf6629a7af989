import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.errors import ActionError, EpisodeError, RenderError

pytest.importorskip("robosuite")
pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env():
    env = envs.make("lift")
    yield env
    env.close()


def rollout(env, seed, steps=10):
    """Observations of one seeded episode under fixed random actions."""
    observation, _ = env.reset(seed=seed)
    actions = np.random.default_rng(1).uniform(-1, 1, (steps, 7)).astype(np.float32)
    return [observation] + [env.step(action)[0] for action in actions]


def assert_same(first, second):
    for one, two in zip(first, second, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])


def test_keeps_gymnasiums_contract(env):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on bounds and on registration
        check_env(env)


def test_observations_are_the_specs_in_order_and_float32(env):
    observation, info = env.reset(seed=0)

    assert {k: v.shape for k, v in observation.items()} == envs.spec("lift").observation_shapes
    assert list(observation) == [key for key, _ in envs.spec("lift").observations]
    assert all(value.dtype == np.float32 for value in observation.values())
    assert info == {"success": False, "seed": 0}
    # The hand points down: its body's quaternion (x, y, z, w) is near a half turn about x.
    assert abs(observation["robot0_eef_quat"][0]) > 0.95
    # robosuite 1.5's sign: from the hand to the cube.
    np.testing.assert_allclose(
        observation["object"][7:],
        observation["object"][:3] - observation["robot0_eef_pos"],
        atol=1e-6,
    )


def test_a_seed_gives_the_same_episode_bit_for_bit(env):
    first = rollout(env, seed=11)
    other = rollout(env, seed=12)
    again = rollout(env, seed=11)
    fresh = envs.make("lift")
    elsewhere = rollout(fresh, seed=11)
    fresh.close()

    assert not np.array_equal(first[0]["object"], other[0]["object"])
    assert_same(first, again)
    assert_same(first, elsewhere)


def test_reset_without_a_seed_draws_on_and_names_the_seed(env):
    env.reset(seed=0)
    first, info = env.reset()
    second, _ = env.reset()
    replayed, _ = env.reset(seed=info["seed"])

    assert not np.array_equal(first["object"], second["object"])
    assert_same([first], [replayed])


def test_actions_move_the_hand_in_the_world_frame(env):
    before, _ = env.reset(seed=0)
    for _ in range(5):
        after, *_ = env.step(np.array([0, 1, 0, 0, 0, 0, -1], dtype=np.float32))

    moved = after["robot0_eef_pos"] - before["robot0_eef_pos"]
    assert moved[1] > 0.03 and np.abs(moved[[0, 2]]).max() < 0.01


def test_actions_out_of_bounds_are_clipped(env):
    env.reset(seed=0)
    most, *_ = env.step(np.ones(7, dtype=np.float32))
    env.reset(seed=0)
    more, *_ = env.step(np.full(7, 5, dtype=np.float32))
    assert_same([most], [more])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(6), r"lift: .*shape \(7,\), got \(6,\)"),
        (np.zeros((8, 7)), "not a chunk"),
        (np.full(7, np.inf), "must be finite"),
        (None, "7 numbers|finite|shape"),
    ],
)
def test_bad_actions_are_named_and_change_nothing(env, action, message):
    env.reset(seed=0)
    before = env.simulator_state()
    with pytest.raises(ActionError, match=message):
        env.step(action)
    np.testing.assert_array_equal(env.simulator_state(), before)


def test_an_episode_is_truncated_at_the_limit_and_then_refuses_to_step(env, monkeypatch):
    monkeypatch.setattr(
        env, "task", env.task.__class__(**{**vars(env.task), "max_episode_steps": 3})
    )
    env.reset(seed=0)
    ends = [env.step(np.zeros(7, dtype=np.float32))[2:4] for _ in range(3)]

    assert ends == [(False, False), (False, False), (False, True)]
    with pytest.raises(EpisodeError, match="call reset"):
        env.step(np.zeros(7, dtype=np.float32))


def test_rendering_must_be_asked_for(env):
    env.reset(seed=0)
    with pytest.raises(RenderError, match="render_mode='rgb_array'"):
        env.render()


def test_env_meta_is_what_robomimic_writes(env):
    meta = env.env_meta()

    assert (meta["env_name"], meta["type"]) == ("Lift", 1)
    controller = meta["env_kwargs"]["controller_configs"]["body_parts"]["right"]
    assert controller["input_type"] == "delta" and controller["input_ref_frame"] == "world"


def test_model_names_its_assets_without_this_computers_folders(env):
    env.reset(seed=0)
    files = env.model_xml().split('file="')[1:]
    assert files and all(name.startswith("robosuite/models/assets/") for name in files)


def test_a_run_that_draws_nothing_is_quiet_and_needs_no_opengl():
    code = (
        "import os, sys, numpy as np, envs\n"
        "env = envs.make('lift'); env.reset(seed=0)\n"
        "env.step(np.zeros(7, np.float32)); env.close()\n"
        "print('OpenGL' in sys.modules, os.environ.get('MUJOCO_GL'))"
    )
    clean = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean
    )
    assert run.stdout.strip() == "False None"
    assert run.stderr == ""


def test_images_are_observed_by_camera(monkeypatch):
    # Looks alike enough for this; not every machine has OpenGL.
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    images = {"agentview_image": (84, 84), "robot0_eye_in_hand_image": (40, 60)}
    env = envs.make("lift", images=images)
    first, _ = env.reset(seed=0)
    assert env.observation_space.contains(first)
    assert first["robot0_eye_in_hand_image"].shape == (40, 60, 3)
    table, cube = first["agentview_image"][70, 40], first["agentview_image"][46, 37]
    assert table.min() > 180  # white
    assert cube[0] > 2 * cube[1]  # red
    later, *_ = env.step(np.ones(7, np.float32))
    assert (first["agentview_image"] != later["agentview_image"]).any()
    again, _ = env.reset(seed=0)
    assert_same([first], [again])
    env.close()


def test_images_must_name_cameras(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(RenderError, match="expected keys <camera>_image, got 'front'"):
        envs.make("lift", images={"front": (84, 84)})
    env = envs.make("lift", images={"front_image": (84, 84)})
    with pytest.raises(RenderError, match="no camera 'front' in this scene; there are: "):
        env.reset(seed=0)
    env.close()


def test_closes_a_simulation_that_ctrl_c_left_half_freed(monkeypatch):
    from robosuite.utils import binding_utils

    env = envs.make("lift")
    env.reset(seed=0)

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(binding_utils.gc, "collect", interrupt)  # the last that freeing calls
    with pytest.raises(KeyboardInterrupt):
        env.reset(seed=1)
    monkeypatch.undo()
    env.close()
    env.close()
