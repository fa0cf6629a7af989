"""What all five Robomimic tasks have in common: seeds, absolute actions, snapshots."""

import copy
from dataclasses import fields, replace

import numpy as np
import pytest

import envs
from envs.errors import ActionError, EpisodeError, SnapshotError

pytest.importorskip("robosuite")
pytestmark = pytest.mark.sim

from envs import snapshots  # noqa: E402

TASKS = ("lift", "can", "square", "transport", "tool_hang")


@pytest.fixture(scope="module", params=TASKS)
def env(request):
    env = envs.make(request.param, terminate_on_success=False)
    yield env
    env.close()


def actions(env, steps, seed=1):
    drawn = np.random.default_rng(seed).uniform(-1, 1, (steps, env.task.action_dim))
    return drawn.astype(np.float32)


def play(env, commands):
    """Observations under some actions, laid end to end."""
    observed = [env.step(command)[0] for command in commands]
    return np.array([np.concatenate([o[key] for key in o]) for o in observed])


def test_a_seed_gives_the_same_episode_here_and_elsewhere(env):
    observation, info = env.reset(seed=11)
    assert {k: v.shape for k, v in observation.items()} == env.task.observation_shapes
    assert info == {"success": False, "seed": 11}
    first = play(env, actions(env, 12))
    env.reset(seed=12)
    assert not np.array_equal(play(env, actions(env, 12)), first)
    env.reset(seed=11)
    assert np.array_equal(play(env, actions(env, 12)), first)
    other = envs.make(env.task.name, terminate_on_success=False)
    other.reset(seed=11)
    assert np.array_equal(play(other, actions(env, 12)), first)
    other.close()


def test_absolute_actions_move_as_the_deltas_they_were_read_from(env):
    commands = actions(env, 15)
    poses = []
    env.reset(seed=3)
    deltas = []
    for command in commands:
        deltas.append(play(env, [command])[0])
        poses.append(env.absolute_action())
    env.reset(seed=3)
    try:
        env.action_mode = "absolute"
        assert np.isinf(env.action_space.high).sum() == env.task.action_dim // 7 * 6
        absolute = play(env, poses)
    finally:
        env.action_mode = "delta"
    # Poses are handed over in float32: a few hundred nanometres, which contacts may magnify.
    assert np.abs(absolute - deltas).max() < 1e-3
    assert np.abs(np.diff(absolute, axis=0)).max() > 0.01
    with pytest.raises(ActionError, match="unknown action mode 'joint'"):
        env.action_mode = "joint"


def test_a_restored_demonstrator_sees_what_it_saw(env):
    """Between two steps the hand's pose is that of a moment before: not what the state says."""
    env.reset(seed=5)
    play(env, actions(env, 10))
    snapshot = snapshots.save(env)

    def seen():
        data = env.robosuite.sim.data
        return np.concatenate([data.site_xpos.ravel(), data.body_xpos.ravel()])

    before = seen()
    play(env, actions(env, 5, seed=3))
    snapshots.restore(env, snapshot)
    assert np.array_equal(seen(), before)


def test_a_snapshot_in_the_middle_restores_the_future_bit_for_bit(env):
    env.reset(seed=5)
    play(env, actions(env, 10))
    snapshot = snapshots.save(env)
    rest = actions(env, 12, seed=2)
    future, state = play(env, rest), env.simulator_state()
    play(env, actions(env, 5, seed=3))
    snapshots.restore(env, snapshot)
    assert np.array_equal(play(env, rest), future)
    assert np.array_equal(env.simulator_state(), state)
    elsewhere = envs.make(env.task.name, terminate_on_success=False)
    with pytest.raises(EpisodeError, match="call reset\\(\\) before restore"):
        snapshots.restore(elsewhere, snapshot)
    elsewhere.reset(seed=5)
    elsewhere.robosuite.rng.random()
    snapshots.restore(elsewhere, snapshot)
    again = snapshots.save(elsewhere)
    for field in fields(snapshot):
        expect_same(getattr(again, field.name), getattr(snapshot, field.name), field.name)
    assert np.array_equal(play(elsewhere, rest), future)
    elsewhere.close()


def expect_same(found, expected, name):
    """That two parts of snapshots are equal, whatever they are made of."""
    assert type(found) is type(expected), name
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key in expected:
            expect_same(found[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), name
        for index, entry in enumerate(expected):
            expect_same(found[index], entry, f"{name}.{index}")
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f"), name
    elif hasattr(expected, "__dict__"):
        expect_same(vars(found), vars(expected), name)
    else:
        assert found == expected or (found != found and expected != expected), name


def test_contacts_are_found_anew(env):
    env.reset(seed=5)
    play(env, actions(env, 10))
    snapshot = snapshots.save(env)
    snapshots.restore(env, snapshot)
    touching = contacts(env)
    env.robosuite.sim.data._data.ncon = 0
    snapshots.restore(env, snapshot)
    assert len(touching) > 0 and contacts(env) == touching


def contacts(env):
    return [tuple(pair) for pair in env.robosuite.sim.data._data.contact.geom]


def test_a_damaged_snapshot_is_refused_and_changes_nothing(env):
    env.reset(seed=5)
    play(env, actions(env, 3))
    snapshot = snapshots.save(env)
    play(env, actions(env, 3, seed=2))
    before = env.simulator_state()
    one = dict(snapshot.derived)
    del one["qpos"]
    short = snapshot.derived | {"qpos": snapshot.derived["qpos"][:1]}
    emptied = copy.deepcopy(snapshot.robots)
    emptied[0]["parts"] = {}
    for damage, message in (
        ({"physics": snapshot.physics * np.nan}, "physics: expected finite numbers"),
        ({"physics": snapshot.physics[:-1]}, "physics: expected float64 of shape"),
        ({"physics": snapshot.physics.astype(np.float32)}, "physics: .* got float32"),
        ({"derived": one}, "derived: expected"),
        ({"derived": short}, r"derived.qpos: expected float64 of shape .* got .* \(1,\)"),
        ({"robots": []}, "robots: expected . entries"),
        ({"robots": emptied}, "robots.0.parts: expected"),
        ({"observables": {}}, "observables: expected"),
        ({"clocks": {}}, "clocks: expected"),
        ({"rng": {}}, "rng: expected"),
        ({"seeds": None}, "seeds: expected"),
        ({"episode": {}}, "episode: expected"),
    ):
        with pytest.raises(SnapshotError, match=f"damaged snapshot: {message}"):
            snapshots.restore(env, replace(snapshot, **damage))
    assert np.array_equal(env.simulator_state(), before)
    snapshots.restore(env, snapshot)


def test_a_snapshot_of_another_controller_is_refused():
    env = envs.make("lift")
    arguments = env.env_meta()["env_kwargs"]
    arguments["controller_configs"]["body_parts"]["right"]["input_ref_frame"] = "base"
    other = envs.make("lift", robosuite_arguments=arguments)
    env.reset(seed=5)
    other.reset(seed=5)
    snapshot = snapshots.save(env)
    with pytest.raises(SnapshotError, match="'world'.*this one has .*'base'"):
        snapshots.restore(other, snapshot)
    env.close()
    other.close()


def test_snapshots_are_of_open_environments_of_robomimic():
    env = envs.make("lift")
    env.reset(seed=5)
    snapshot = snapshots.save(env)
    env.close()
    with pytest.raises(EpisodeError, match="the environment is closed"):
        snapshots.save(env)
    with pytest.raises(EpisodeError, match="the environment is closed"):
        snapshots.restore(env, snapshot)
    pusht = envs.make("pusht")
    with pytest.raises(SnapshotError, match="expected an environment of Robomimic's"):
        snapshots.save(pusht)
    pusht.close()


def test_a_snapshot_knows_which_episodes_come_next(env):
    env.reset(seed=5)
    env.np_random.random(3)
    snapshot = snapshots.save(env)
    coming = env.reset()[1]["seed"]
    env.reset(seed=5)
    snapshots.restore(env, snapshot)
    assert env.reset()[1]["seed"] == coming


def test_a_snapshot_of_another_model_is_refused():
    env = envs.make("lift")
    with pytest.raises(EpisodeError, match="call reset\\(\\) before save"):
        snapshots.save(env)
    env.reset(seed=5)
    snapshot = snapshots.save(env)
    env.reset(seed=6)  # a cube of another size
    with pytest.raises(SnapshotError, match="reset\\(seed=...\\) with that episode's seed"):
        snapshots.restore(env, snapshot)
    other = envs.make("can")
    other.reset(seed=5)
    with pytest.raises(SnapshotError, match="expected a snapshot of can, .* got one of lift"):
        snapshots.restore(other, snapshot)
    env.close()
    other.close()
