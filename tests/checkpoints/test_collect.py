import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hydra import compose, initialize
from paths import REPOSITORY
from tiny_policies import save_tiny_policy

import envs

pytest.importorskip("robosuite")

from checkpoints import collect as module  # noqa: E402
from checkpoints.collect import CollectError, collect  # noqa: E402
from envs.demonstrators import recording  # noqa: E402

pytestmark = pytest.mark.sim


def configured(*overrides):
    with initialize(version_base="1.3", config_path="../../configs"):
        return compose("collect", overrides=list(overrides))


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    path = tmp_path_factory.mktemp("collected") / "lift.hdf5"
    return collect(configured("episodes=3", f"output={path}", "valid_fraction=0.34", "seed=500"))


def test_file_is_laid_out_as_robomimic_does(demonstrations):
    with h5py.File(demonstrations) as file:
        data = file["data"]
        meta = json.loads(data.attrs["env_args"])
        assert (meta["env_name"], meta["type"]) == ("Lift", 1)
        assert meta["env_kwargs"]["control_freq"] == 20
        assert sorted(data) == ["demo_0", "demo_1", "demo_2"]
        assert data.attrs["total"] == sum(demo.attrs["num_samples"] for demo in data.values())
        for demo in data.values():
            steps = demo.attrs["num_samples"]
            assert demo["actions"].shape == demo["actions_abs"].shape == (steps, 7)
            assert demo["states"].shape == (steps, 32)
            assert demo["rewards"].shape == demo["dones"].shape == (steps,)
            shapes = {key: values.shape[1:] for key, values in demo["obs"].items()}
            assert shapes == envs.spec("lift").observation_shapes
            assert demo["rewards"][-1] == 1 and demo["dones"][-1] == 1
            assert demo.attrs["model_file"].startswith("<mujoco")
        train, valid = set(file["mask/train"][:]), set(file["mask/valid"][:])
        assert len(valid) == 1 and not train & valid
        assert train | valid == {b"demo_0", b"demo_1", b"demo_2"}
        assert json.loads(data.attrs["collect"])["versions"]["robosuite"]
    assert list(demonstrations.parent.iterdir()) == [demonstrations]  # no partial file is left


def test_recorded_actions_replayed_from_the_seed_give_the_recorded_observations(demonstrations):
    env = envs.make("lift", terminate_on_success=False)
    with h5py.File(demonstrations) as file:
        demo = file["data/demo_1"]
        observation, _ = env.reset(seed=int(demo.attrs["seed"]))
        for step, action in enumerate(demo["actions"][:]):
            for key, value in observation.items():
                np.testing.assert_array_equal(value, demo[f"obs/{key}"][step])
            np.testing.assert_array_equal(env.simulator_state(), demo["states"][step])
            observation, reward, *_ = env.step(action)
            assert reward == demo["rewards"][step]
    env.close()


def test_a_stopped_run_goes_on_where_it_was(demonstrations, tmp_path, monkeypatch):
    output = tmp_path / "again.hdf5"
    config = configured("episodes=3", f"output={output}", "valid_fraction=0.34", "seed=500")
    add = module.DemoFile.add

    def add_then_stop(file, episode):
        add(file, episode)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.DemoFile, "add", add_then_stop)
        with pytest.raises(KeyboardInterrupt):
            collect(config)
    assert not output.exists()

    collect(config)

    with h5py.File(demonstrations) as whole, h5py.File(output) as resumed:
        assert whole["data"].attrs["total"] == resumed["data"].attrs["total"]
        for name, demo in whole["data"].items():
            np.testing.assert_array_equal(demo["actions"], resumed[f"data/{name}/actions"])


def test_a_killed_run_is_stopped_in_good_order(tmp_path):
    """As work in the background is: there Ctrl-C goes unheard."""
    output = tmp_path / "lift.hdf5"
    command = [sys.executable, "-m", "checkpoints.collect", "episodes=50", f"output={output}"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    seen = ""
    while "1/50" not in seen and process.poll() is None:
        seen += process.stderr.read(1)
    process.terminate()
    _, rest = process.communicate(timeout=60)
    assert "the same command goes on from there" in rest and process.returncode == 1
    with h5py.File(f"{output}.partial") as file:
        assert len(file["data"]) >= 1


def test_a_partial_file_of_other_settings_is_not_continued(tmp_path):
    output = tmp_path / "lift.hdf5"
    settings = {"task": "lift", "seed": 1}
    with module.DemoFile(output, settings):
        pass
    with pytest.raises(CollectError, match="remove it to start afresh"):
        module.DemoFile(output, {**settings, "seed": 2})


def test_failures_are_counted_and_not_kept(tmp_path, monkeypatch):
    record = module.record_episodes

    def record_but_spoil_the_first(*arguments):
        for index, episode in enumerate(record(*arguments)):
            object.__setattr__(episode, "success", index > 0)
            yield episode

    monkeypatch.setattr(module, "record_episodes", record_but_spoil_the_first)
    path = collect(configured("episodes=1", f"output={tmp_path / 'a.hdf5'}", "seed=500"))

    with h5py.File(path) as file:
        assert list(file["data"].attrs["failed_seeds"]) == [500]
        assert file["data/demo_0"].attrs["seed"] == 501


def test_an_exception_in_an_episode_is_a_failure_that_is_told(tmp_path, monkeypatch, caplog):
    honest = recording.record_episode

    def record_or_raise(env, seed, *rest):
        if seed == 500:
            raise FloatingPointError("the solver diverged")
        return honest(env, seed, *rest)

    monkeypatch.setattr(recording, "record_episode", record_or_raise)
    path = collect(configured("episodes=1", f"output={tmp_path / 'a.hdf5'}", "seed=500"))

    with h5py.File(path) as file:
        assert list(file["data"].attrs["failed_seeds"]) == [500]
        assert file["data/demo_0"].attrs["seed"] == 501
    assert "seed 500 failed" in caplog.text and "the solver diverged" in caplog.text


def test_goes_on_from_where_noise_or_a_policy_got_to(tmp_path):
    """The demonstration begins in the middle, in the state that the opening left, and succeeds."""
    policy = save_tiny_policy("lift", tmp_path / "policy", scale=1.0, offset=0.0)
    first = {}
    for opening in (None, "noise", str(policy)):
        path = tmp_path / f"{str(opening).split('/')[-1]}.hdf5"
        chosen = "null" if opening is None else opening
        settings = ["episodes=1", f"output={path}", "seed=500", f"opening={chosen}"]
        collect(configured(*settings, "opening_steps=12"))
        with h5py.File(path) as file:
            demo = file["data/demo_0"]
            assert demo["rewards"][-1] == 1
            first[opening] = demo.attrs["seed"], demo["states"][0][0]
    assert [seed for seed, _ in first.values()] == [500] * 3
    start = first[None][1]
    assert start < first["noise"][1] and start < first[str(policy)][1]
    with pytest.raises(CollectError, match="a policy for pusht, not lift"):
        other = save_tiny_policy("pusht", tmp_path / "other", scale=1.0, offset=0.0)
        collect(configured("episodes=1", f"output={tmp_path / 'c.hdf5'}", f"opening={other}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("episodes=0", "episodes=0: expected at least 1"),
        ("workers=0", "workers=0"),
        ("valid_fraction=1.0", r"\[0, 1\)"),
        ("task=pusht", "demonstrators for"),
        ("opening_steps=400", "less than the 400 steps of an episode of lift"),
        ("output=???", r"without a value: \['output'\]; give output="),
    ],
)
def test_impossible_settings_are_named(override, message, tmp_path):
    with pytest.raises(CollectError, match=message):
        collect(configured(f"output={tmp_path / 'a.hdf5'}", override))


def test_an_existing_file_is_never_overwritten(tmp_path):
    output = tmp_path / "lift.hdf5"
    output.write_text("precious")
    with pytest.raises(CollectError, match="exists already"):
        collect(configured(f"output={output}"))
    assert output.read_text() == "precious"


@pytest.mark.slow
def test_workers_change_nothing(demonstrations, tmp_path):
    output = tmp_path / "parallel.hdf5"
    collect(configured("episodes=3", f"output={output}", "seed=500", "workers=2"))
    with h5py.File(demonstrations) as one, h5py.File(output) as two:
        for name, demo in one["data"].items():
            np.testing.assert_array_equal(demo["states"], two[f"data/{name}/states"])
