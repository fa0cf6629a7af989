"""Training: the windows, the readers, and a run that goes on where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal

import h5py
import numpy as np
import pytest
import torch
import zarr
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from paths import REPOSITORY, SHARED

import asd_policy
from asd_policy.formats import load_checkpoint
from asd_policy.sampling import CleanPrediction
from checkpoints import train as module
from checkpoints.datasets import Demonstrations, load_demonstrations, window_indices
from checkpoints.optimizers import build_optimizers
from checkpoints.train import ChunkData, Trainer, policy_spec, train

PUSHT = SHARED / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"
LIFT = SHARED / "data" / "robomimic" / "lift_ph_2demos_low_dim.hdf5"
KEYS = {"object": 14, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
UNET = [
    "policy.network.down_dims=[8,16]",
    "policy.network.diffusion_step_embed_dim=16",
    "policy.network.n_groups=4",
]
HAS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9 or later")
MUON = ["optimizer=muon", "learning_rate=1e-3"]
FAMILIES = {
    "chi_unet": [],
    "chi_transformer": ["n_layer=1", "n_head=2", "n_emb=16"],
    "reuss_beso": ["n_layer=1", "n_head=2", "n_emb=16"],
}


@pytest.fixture
def dataset(tmp_path):
    """Two short episodes in robomimic's format, with the sizes of Square."""
    rng = np.random.default_rng(0)
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        for name, steps in (("demo_10", 25), ("demo_9", 30)):
            demo = file.create_group(f"data/{name}")
            demo["actions"] = np.sin(np.arange(steps)[:, None] / 6 + np.arange(7))
            demo["actions_abs"] = demo["actions"]
            for key, size in KEYS.items():
                demo[f"obs/{key}"] = rng.standard_normal((steps, size))
    return path


def configure(dataset, output, *overrides):
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return compose(
            "train",
            [
                "task=square",
                "task.action_mode=delta",
                "task.action_rotation=null",
                f"dataset={dataset}",
                f"output={output}",
                "batch_size=16",
                "steps=12",
                "warmup_steps=3",
                "save_every=100",
                *([] if any(o.startswith("policy=") for o in overrides) else UNET),
                *overrides,
            ],
        )


def test_windows_begin_before_an_episode_and_end_after_it_but_never_leave_it():
    windows = window_indices(np.array([5, 12]), obs_horizon=2, pred_horizon=4, action_horizon=3)
    first = [w.tolist() for w in windows if w.max() < 5]
    assert first == [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 4], [3, 4, 4, 4]]
    assert all(w.min() >= 5 for w in windows[len(first) :])
    assert windows[-1].tolist() == [10, 11, 11, 11]


def test_demonstrations_are_read_in_the_order_of_recording(dataset):
    demonstrations = load_demonstrations(dataset, list(KEYS), "delta")
    assert demonstrations.episode_ends.tolist() == [30, 55]
    with h5py.File(dataset) as file:
        assert np.allclose(demonstrations.actions[:30], file["data/demo_9/actions"])
        assert np.allclose(
            demonstrations.observations["object"][30:], file["data/demo_10/obs/object"]
        )


@pytest.mark.skipif(not LIFT.exists(), reason="needs the recorded demonstrations")
def test_reads_robomimics_own_files():
    demonstrations = load_demonstrations(LIFT, list(KEYS), "delta")
    sizes = {k: v.shape[1] for k, v in demonstrations.observations.items()}
    assert sizes == KEYS | {"object": 10}
    assert demonstrations.actions.shape == (demonstrations.episode_ends[-1], 7)


@pytest.mark.parametrize("sign", [1, -1])
def test_lifts_cube_is_seen_from_the_hand_whichever_simulator_recorded_it(tmp_path, sign):
    """Robomimic's files, of robosuite 1.4 and older, go from the cube to the hand."""
    rng = np.random.default_rng(0)
    cube, hand = rng.standard_normal((2, 8, 3))
    with h5py.File(tmp_path / "lift.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"] = np.zeros((8, 7))
        demo["obs/robot0_eef_pos"] = hand
        demo["obs/object"] = np.hstack([cube, np.ones((8, 4)), sign * (cube - hand)])
    seen = load_demonstrations(tmp_path / "lift.hdf5", ["object"], "delta").observations["object"]
    np.testing.assert_allclose(seen[:, 7:], cube - hand, atol=1e-6)
    np.testing.assert_allclose(seen[:, :3], cube, atol=1e-6)


@pytest.mark.parametrize(
    "controller",
    [
        {"type": "OSC_POSE", "control_delta": False},
        {"type": "OSC_POSE", "control_delta": False, "input_type": None},
        [{"type": "BASIC", "body_parts": {"right": {"input_type": "absolute"}}}] * 2,
    ],
)
def test_absolute_poses_are_not_taken_for_deltas(dataset, controller):
    with h5py.File(dataset, "a") as file:
        meta = {"env_name": "Lift", "env_kwargs": {"controller_configs": controller}}
        file["data"].attrs["env_args"] = json.dumps(meta)
    with pytest.raises(ValueError, match="demo_9: expected deltas as 'actions'"):
        load_demonstrations(dataset, ["object"], "delta")
    with h5py.File(dataset, "a") as file:
        for demo in file["data"].values():
            del demo["actions_abs"]
    load_demonstrations(dataset, ["object"], "absolute")


@pytest.mark.parametrize(
    "controller",
    [
        {"control_delta": False, "input_type": "delta"},
        {"type": "BASIC", "control_delta": False, "body_parts": {"right": {"type": "OSC_POSE"}}},
        {"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE", "control_delta": False}}},
    ],
)
def test_an_option_that_nothing_reads_makes_no_poses_of_deltas(dataset, controller):
    with h5py.File(dataset, "a") as file:
        meta = {"env_name": "Lift", "env_kwargs": {"controller_configs": controller}}
        file["data"].attrs["env_args"] = json.dumps(meta)
        first = file["data/demo_9/actions"][:]
    assert np.allclose(load_demonstrations(dataset, ["object"], "delta").actions[:30], first)


def test_actions_that_are_no_poses_are_learned_as_they_are(dataset):
    with h5py.File(dataset, "a") as file:
        for demo in file["data"].values():
            joints = 3 * demo["actions"][:, :6]
            del demo["actions"], demo["actions_abs"]
            demo["actions"] = joints
        first = file["data/demo_9/actions"][:]
    for mode in ("delta", "absolute"):
        with pytest.raises(ValueError, match=r"7 numbers an arm.*\(6,\).*action_mode=position"):
            load_demonstrations(dataset, ["object"], mode)
    learned = load_demonstrations(dataset, ["object"], "position").actions
    assert np.allclose(learned[:30], first)


def test_what_was_seen_after_the_last_action_is_not_taken_for_the_next_episode(dataset):
    with h5py.File(dataset, "a") as file:
        demo = file["data/demo_9"]
        seen = demo["obs/object"][:]
        del demo["obs/object"]
        demo["obs/object"] = np.concatenate([seen, seen[-1:]])
    with pytest.raises(ValueError, match="demo_9: .*each of the 30 actions, got 31 of 'object'"):
        load_demonstrations(dataset, ["object"], "delta")


def test_bytes_that_are_no_image_are_numbers(dataset, tmp_path):
    """A switch, such as an open or closed gripper."""
    config = configure(dataset, tmp_path)
    key = OmegaConf.create({"key": "switch", "shape": [1]})
    with open_dict(config):
        config.task.observations = [*config.task.observations, key]
    spec = policy_spec(config)
    batches = []
    for kind in (np.float32, np.uint8):
        with h5py.File(dataset, "a") as file:
            for demo in file["data"].values():
                demo["obs"].pop("switch", None)
                demo["obs/switch"] = (np.arange(len(demo["actions"])) % 2)[:, None].astype(kind)
        keys = [entry.key for entry in spec.observations]
        data = ChunkData(load_demonstrations(dataset, keys, "delta"), spec)
        batches.append(data.batch(torch.arange(8))[0])
    assert torch.equal(*batches)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.action_dim=14", "the task says 14 numbers, the demonstrations have"),
        ("task.observations.0.shape=[13]", r"object: the task says shape \(13,\), .*\(14,\)"),
        ("policy.pred_horizon=200", "an episode of more than"),
        ("policy.pred_horizon=15", "halve it 1 times: expected a multiple of 2, got 15"),
    ],
)
def test_a_task_that_is_not_the_datas_is_named_before_training(
    dataset, tmp_path, override, message
):
    config = configure(dataset, tmp_path / "run", "task.observations.0.quaternions=[]", override)
    with pytest.raises((ValueError, asd_policy.AsdPolicyError), match=message):
        train(config)
    assert not (tmp_path / "run" / "train_state.pt").exists()


def test_poses_are_told_by_their_numbers_where_the_file_says_deltas(dataset):
    """The files of Chi et al., whose `env_args` are those of the deltas."""
    delta = {"env_name": "Lift", "env_kwargs": {"controller_configs": {"control_delta": True}}}
    with h5py.File(dataset, "a") as file:
        file["data"].attrs["env_args"] = json.dumps(delta)
        for demo in file["data"].values():
            del demo["actions_abs"]
            demo["actions"][:, 3:6] = [2.2, 2.2, 0.1]  # down
        poses = file["data/demo_9/actions"][:]
    assert np.allclose(load_demonstrations(dataset, ["object"], "absolute").actions[:30], poses)
    with pytest.raises(ValueError, match="expected deltas as 'actions', got absolute poses"):
        load_demonstrations(dataset, ["object"], "delta")


ARRAY = {"shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None, "order": "C"}
PICKLE_CODEC = {"id": "pickle", "protocol": 5}
RUNNING_CODE = {
    "filter": {"data/state/.zarray": ARRAY | {"filters": [PICKLE_CODEC], "compressor": None}},
    "compressor": {"data/action/.zarray": ARRAY | {"filters": None, "compressor": PICKLE_CODEC}},
    "consolidated": {
        "data/state/.zarray": ARRAY | {"filters": None, "compressor": None},
        ".zmetadata": {"metadata": {"data/state/.zarray": ARRAY | {"filters": [PICKLE_CODEC]}}},
    },
    "format 3": {"meta/episode_ends/zarr.json": {"codecs": [{"name": "numcodecs.pickle"}]}},
}


@pytest.mark.parametrize("files", RUNNING_CODE.values(), ids=RUNNING_CODE)
def test_an_array_that_could_run_code_is_refused_before_it_is_read(tmp_path, monkeypatch, files):
    for name, metadata in files.items():
        path = tmp_path / "demos.zarr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(metadata | {"zarr_format": 2}))
    monkeypatch.delattr("checkpoints.datasets.zarr.open")
    with pytest.raises(ValueError, match="pickle'.* may run code"):
        load_demonstrations(tmp_path / "demos.zarr", ["agent_pos"], "position")


@pytest.mark.skipif(int(zarr.__version__[0]) < 3, reason="needs zarr 3, which writes both formats")
@pytest.mark.parametrize("version", [2, 3])
def test_reads_both_formats_of_zarr(tmp_path, version):
    group = zarr.open_group(str(tmp_path / "demos.zarr"), mode="w", zarr_format=version)
    group.create_array("data/state", data=np.ones((6, 5), np.float32))
    group.create_array("data/action", data=np.ones((6, 2), np.float32))
    group.create_array("meta/episode_ends", data=np.array([2, 6]))
    read = load_demonstrations(tmp_path / "demos.zarr", ["agent_pos"], "position")
    assert read.episode_ends.tolist() == [2, 6] and read.actions.shape == (6, 2)


@pytest.mark.skipif(not PUSHT.exists(), reason="needs the recorded demonstrations")
def test_reads_the_pusht_demonstrations():
    demonstrations = load_demonstrations(PUSHT, ["keypoint", "agent_pos"], "position")
    assert len(demonstrations.episode_ends) == 206
    assert demonstrations.observations["keypoint"].shape == (25_650, 9, 2)
    assert demonstrations.actions.shape == (25_650, 2)


def test_what_cannot_be_read_is_named(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="no demonstrations there"):
        load_demonstrations(tmp_path / "none.hdf5", [], "delta")
    with pytest.raises(ValueError, match="no observation 'camera'; there are"):
        load_demonstrations(dataset, ["camera"], "delta")
    (tmp_path / "demos.csv").write_text("")
    with pytest.raises(ValueError, match="expected a robomimic .hdf5 file, or the PushT"):
        load_demonstrations(tmp_path / "demos.csv", [], "delta")


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param([], id="adamw"),
        pytest.param(MUON, id="muon", marks=HAS_MUON),
        pytest.param(
            [*MUON, "policy=chi_transformer"]
            + [f"policy.network.{option}" for option in FAMILIES["chi_transformer"]],
            id="muon-transformer",
            marks=HAS_MUON,
        ),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(dataset, tmp_path, monkeypatch, recipe):
    train(configure(dataset, tmp_path / "whole", *recipe))
    honest = Trainer.update

    def interrupted(trainer):
        if trainer.step == 7:
            raise KeyboardInterrupt
        return honest(trainer)

    config = configure(dataset, tmp_path / "parts", *recipe)
    monkeypatch.setattr(Trainer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    train(config)
    whole, parts = (
        load_checkpoint(tmp_path / name / "checkpoint").network.state_dict()
        for name in ("whole", "parts")
    )
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


@HAS_MUON
@pytest.mark.parametrize("family", ["chi_transformer", "reuss_beso"])
def test_muon_moves_the_inner_matrices_and_adamw_all_other_weights(dataset, tmp_path, family):
    small = [f"policy.network.{option}" for option in FAMILIES[family]]
    config = configure(dataset, tmp_path, *MUON, f"policy={family}", *small)
    network = policy_spec(config).build_network()
    muon, adamw = build_optimizers(config, network)
    (inner,), (others,) = (optimizer.param_groups for optimizer in (muon, adamw))
    moved = [id(weight) for weight in inner["params"] + others["params"]]
    assert sorted(moved) == sorted(map(id, network.parameters()))
    # Square's observations have 29 numbers, more than this network is wide: their embedding is
    # AdamW's nevertheless, as are those of actions and time, and the head.
    shapes = [tuple(weight.shape) for weight in others["params"]]
    assert {(16, 29), (16, 7), (7, 16)} <= set(shapes)
    assert all(side in (16, 48, 64) for weight in inner["params"] for side in weight.shape)
    assert len(inner["params"]) >= 6


@HAS_MUON
def test_muon_moves_a_convolution_as_the_matrix_over_its_window(dataset, tmp_path):
    config = configure(dataset, tmp_path, *MUON, "warmup_steps=1", "weight_decay=0")
    spec = policy_spec(config)
    data = ChunkData(
        load_demonstrations([str(dataset)], [entry.key for entry in spec.observations], "absolute"),
        spec,
    )
    trainer = Trainer(config, spec, data)
    before = {name: weight.detach().clone() for name, weight in trainer.network.named_parameters()}
    trainer.update()
    moved = {
        name: (weight.detach() - before[name]).flatten(1)
        for name, weight in trainer.network.named_parameters()
        if weight.ndim == 3
    }
    width = min(config.policy.network.down_dims)
    inner = {name for name in moved if all(s % width == 0 for s in before[name].shape[:2])}
    outer = {"down_modules.0.0.blocks.0.block.0.weight", "final_conv.1.weight"}
    assert outer <= moved.keys() - inner
    assert len(inner) >= 10
    for name in inner:
        # All directions move nearly alike: Newton-Schulz takes singular values to 0.7 ... 1.2.
        values = torch.linalg.svdvals(moved[name])
        assert values[0] < 4 * values[-1], name


def test_optimizers_that_do_not_suit_are_refused(dataset, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected adamw or muon, got 'sgd'"):
        train(configure(dataset, tmp_path, "optimizer=sgd"))
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"needs torch 2\.9 or later"):
        train(configure(dataset, tmp_path, *MUON, "policy=chi_transformer"))


def test_a_run_is_not_continued_with_another_recipe(dataset, tmp_path):
    train(configure(dataset, tmp_path))
    with pytest.raises(ValueError, match=r"other values of \['learning_rate', 'steps'\]"):
        train(configure(dataset, tmp_path, "steps=20", "learning_rate=1e-3"))


def test_training_learns_and_its_checkpoint_acts(dataset, tmp_path):
    wide = "policy.network.down_dims=[32,64]"
    config = configure(dataset, tmp_path, "steps=150", "learning_rate=2e-3", wide)
    spec = policy_spec(config)
    trainer = Trainer(
        config, spec, ChunkData(load_demonstrations(dataset, list(KEYS), "delta"), spec)
    )
    losses = [trainer.update() for _ in range(150)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    trainer.export(tmp_path / "checkpoint")
    policy = asd_policy.load_policy(tmp_path / "checkpoint", device="cpu")
    policy.reset(seed=0)
    action = policy.act({key: np.zeros(size) for key, size in KEYS.items()})
    assert action.shape == (7,) and np.abs(action).max() <= 1.001


def test_the_learning_rate_warms_up_and_falls_to_zero(dataset, tmp_path):
    config = configure(dataset, tmp_path)
    spec = policy_spec(config)
    trainer = Trainer(
        config, spec, ChunkData(load_demonstrations(dataset, list(KEYS), "delta"), spec)
    )
    rates = []
    for step in range(config.steps + 1):
        trainer.step = step
        rates.append(trainer.learning_rate() / config.learning_rate)
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(a >= b for a, b in zip(rates[3:], rates[4:], strict=False))
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_learns_what_it_is_told_to_predict(dataset, tmp_path, prediction):
    """After a few steps the loss of its own target has fallen; the checkpoint says what it is."""
    config = configure(
        dataset,
        tmp_path / "run",
        "steps=60",
        "learning_rate=3e-3",
        f"policy.prediction={prediction}",
    )
    spec = policy_spec(config)
    assert spec.parametrization.prediction == prediction
    demonstrations = load_demonstrations(dataset, list(KEYS), "delta")
    trainer = Trainer(config, spec, ChunkData(demonstrations, spec))
    losses = [trainer.update() for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:5])
    trainer.export(tmp_path / "checkpoint")
    assert load_checkpoint(tmp_path / "checkpoint").spec == spec


@pytest.mark.parametrize("family", FAMILIES)
def test_learns_absolute_poses_whose_rotations_are_six_numbers(dataset, tmp_path, family):
    """Every family, with quaternions in the observations; the checkpoint acts in poses."""
    small = FAMILIES[family]
    config = configure(
        dataset,
        tmp_path / "run",
        "task.action_mode=absolute",
        "task.action_rotation=rotation_6d",
        "steps=80",
        "learning_rate=3e-3",
        f"policy={family}",
        *([f"policy.network.{option}" for option in small] or UNET),
        "policy.chain.num_steps=20",
    )
    spec = policy_spec(config)
    assert (spec.action_dim, spec.planned_dim, spec.sizes.observation_dim) == (7, 10, 29)
    keys = [entry.key for entry in spec.observations]
    trainer = Trainer(config, spec, ChunkData(load_demonstrations(dataset, keys, "absolute"), spec))
    losses = [trainer.update() for _ in range(80)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    trainer.export(tmp_path / "checkpoint")
    policy = asd_policy.load_policy(tmp_path / "checkpoint", device="cpu", sampler="refine")
    policy.reset(seed=0)
    observation = {entry.key: np.zeros(entry.shape) for entry in spec.observations}
    observation["robot0_eef_quat"] = np.array([1.0, 0, 0, 0])
    action = policy.act(observation)
    assert action.shape == (7,) and np.linalg.norm(action[3:6]) <= np.pi + 1e-5
    policy.reset(seed=0)
    observation["robot0_eef_quat"] = np.array([-1.0, 0, 0, 0])  # the same rotation
    assert np.array_equal(policy.act(observation), action)


def test_absolute_actions_must_be_in_the_file(dataset):
    with h5py.File(dataset, "a") as file:
        del file["data/demo_9/actions_abs"]
    with pytest.raises(ValueError, match="demo_9: no 'actions_abs'.*action_mode=delta"):
        load_demonstrations(dataset, ["object"], "absolute")
    with pytest.raises(ValueError, match=r"actions of mode \['absolute', 'delta', 'position'\]"):
        load_demonstrations(dataset, ["object"], "unknown")


def test_refuses_predictions_that_there_are_not(dataset, tmp_path):
    with pytest.raises(asd_policy.AsdPolicyError, match="unknown prediction 'noise'"):
        policy_spec(configure(dataset, tmp_path, "policy.prediction=noise"))


@pytest.mark.skipif(not PUSHT.exists(), reason="the recorded demonstrations are not here")
def test_learns_from_images(tmp_path):
    options = [
        "task=pusht_image",
        "task.action_mode=position",
        "policy=chi_unet_image",
        "policy.encoder.widths=[16,16,16,16]",
        "policy.encoder.blocks=[1,1,1,1]",
        "batch_size=4",
        "steps=2",
        *UNET,
    ]
    folder = train(configure(PUSHT, tmp_path / "run", *options))
    checkpoint = load_checkpoint(folder)
    assert checkpoint.spec.images == {"image": (96, 96)}
    policy = asd_policy.load_policy(folder, sampler="asd-paper:24", device="cpu")
    policy.reset(seed=1)
    camera = np.full((96, 96, 3), 200, np.uint8)
    action = policy.act({"image": camera, "agent_pos": np.array([100.0, 200.0])})
    assert action.shape == (2,)
    policy.reset(seed=1)
    network_order = camera.transpose(2, 0, 1) / 255
    same = policy.act({"image": network_order, "agent_pos": np.array([100.0, 200.0])})
    np.testing.assert_allclose(same, action, atol=1e-3)
    for bad in (camera.astype(float), camera[:90], camera.transpose(2, 0, 1).astype(np.int64)):
        with pytest.raises(asd_policy.ObservationError, match="image: expected"):
            policy.act({"image": bad, "agent_pos": np.zeros(2)})


def test_a_policy_is_trained_on_with_its_normalisers(dataset, tmp_path):
    first = train(configure(dataset, tmp_path / "first"))
    # So small a rate that the weights stay what they were.
    options = [f"initial={first}", "learning_rate=1e-12", "steps=1"]
    second = train(configure(dataset, tmp_path / "second", *options))
    was, now = load_checkpoint(first), load_checkpoint(second)
    for name, weight in was.network.state_dict().items():
        torch.testing.assert_close(now.network.state_dict()[name], weight, atol=1e-6, rtol=0)
    for key, normalizer in was.normalizers.items():
        assert torch.equal(now.normalizers[key].scale, normalizer.scale)
    with pytest.raises(ValueError, match="another policy"):
        train(configure(dataset, tmp_path / "third", f"initial={first}", "policy.action_horizon=4"))


def edit_actions(dataset, change):
    with h5py.File(dataset, "a") as file:
        actions = file["data/demo_9/actions"]
        actions[:] = change(actions[:])


def test_a_run_is_continued_with_its_own_data_alone_wherever_that_lies(dataset, tmp_path):
    first = train(configure(dataset, tmp_path / "run"))
    before = (first / "model.safetensors").read_bytes()
    moved = shutil.copy(dataset, tmp_path / "moved.hdf5")
    train(configure(moved, tmp_path / "run"))
    edit_actions(dataset, lambda actions: actions / 2)
    with pytest.raises(ValueError, match=r"other contents of \['dataset'\].*another output"):
        train(configure(dataset, tmp_path / "run"))
    assert (first / "model.safetensors").read_bytes() == before
    # A state of an earlier version does not say what it was made from.
    state = torch.load(tmp_path / "run" / "train_state.pt", weights_only=True)
    del state["sources"]
    torch.save(state, tmp_path / "run" / "train_state.pt")
    train(configure(dataset, tmp_path / "run"))


def test_a_run_is_not_continued_from_another_initial_policy(dataset, tmp_path):
    initial = train(configure(dataset, tmp_path / "initial"))
    train(configure(dataset, tmp_path / "run", f"initial={initial}"))
    shutil.rmtree(tmp_path / "initial")
    train(configure(dataset, tmp_path / "initial", "seed=1"))
    with pytest.raises(ValueError, match=r"other contents of \['initial'\]"):
        train(configure(dataset, tmp_path / "run", f"initial={initial}"))
    with pytest.raises(ValueError, match=r"other contents of \['initial'\]"):
        train(configure(dataset, tmp_path / "run"))


def test_the_initial_policy_may_have_moved(dataset, tmp_path):
    initial = train(configure(dataset, tmp_path / "initial"))
    train(configure(dataset, tmp_path / "run", f"initial={initial}", "seed=1"))
    moved = shutil.move(initial, tmp_path / "moved")
    train(configure(dataset, tmp_path / "run", f"initial={moved}", "seed=1"))


def test_a_finished_run_leaves_its_checkpoint_and_gain_as_they_are(dataset, tmp_path):
    folder = train(configure(dataset, tmp_path))
    (folder / "gain.safetensors").write_bytes(b"fitted since")
    train(configure(dataset, tmp_path))
    assert (folder / "gain.safetensors").read_bytes() == b"fitted since"
    shutil.rmtree(folder)
    assert train(configure(dataset, tmp_path)) == folder
    load_checkpoint(folder)


def test_a_run_that_diverges_keeps_the_state_last_written(dataset, tmp_path, monkeypatch):
    config = configure(dataset, tmp_path, "save_every=5")
    honest = CleanPrediction.target

    def spoilt(self, *arguments):
        steps.append(None)
        return honest(self, *arguments) * (np.nan if len(steps) == 8 else 1.0)

    steps = []
    monkeypatch.setattr(CleanPrediction, "target", spoilt)
    with pytest.raises(FloatingPointError, match="step 7: expected a finite loss.*learning_rate"):
        train(config)
    state = torch.load(tmp_path / "train_state.pt", weights_only=True)
    assert state["step"] == 5
    assert all(bool(torch.isfinite(weight).all()) for weight in state["network"].values())
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_an_update_takes_effect_after_it(
    dataset, tmp_path, monkeypatch, number
):
    whole = train(configure(dataset, tmp_path / "whole"))
    honest = Trainer._update_ema

    def interrupted(trainer):
        if trainer.step == 7:
            os.kill(os.getpid(), number)
        honest(trainer)

    # A shell's background jobs are born deaf to Ctrl-C.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    previous_term = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Trainer, "_update_ema", interrupted)
    try:
        module.stop_like_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            train(configure(dataset, tmp_path / "parts"))
    finally:
        signal.signal(signal.SIGINT, previous)
        signal.signal(signal.SIGTERM, previous_term)
    monkeypatch.undo()
    parts = train(configure(dataset, tmp_path / "parts"))
    expected = load_checkpoint(whole).network.state_dict()
    found = load_checkpoint(parts).network.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_the_average_has_the_statistics_of_batch_norms(tmp_path):
    options = [
        "task=pusht_image",
        "task.action_mode=position",
        "policy=chi_unet_image",
        "policy.encoder.widths=[16,16,16,16]",
        "policy.encoder.blocks=[1,1,1,1]",
        "policy.encoder.norm=batch",
        "batch_size=2",
        *UNET,
    ]
    config = configure("none", tmp_path, *options)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (20, 96, 96, 3), np.uint8))
    seen = {"image": images, "agent_pos": torch.rand(20, 2)}
    spec = policy_spec(config)
    data = ChunkData(Demonstrations(seen, torch.rand(20, 2), np.array([20])), spec)
    trainer = Trainer(config, spec, data)
    fresh = {name: value.clone() for name, value in trainer.ema.named_buffers()}
    trainer.update()
    trained = dict(trainer.network.named_buffers())
    averages = {name: v for name, v in trainer.ema.named_buffers() if "running_mean" in name}
    assert averages
    for name, value in averages.items():
        assert torch.equal(value, trained[name]) and not torch.equal(value, fresh[name])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset=???", r"train: settings without a value: \['dataset'\]; give dataset="),
        ("policy.prediction=noise", "train: .*unknown prediction 'noise'"),
    ],
)
def test_wrong_settings_end_in_a_message(override, message, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "stop_like_ctrl_c", lambda: None)
    with pytest.raises(SystemExit, match=message):
        module.main(configure(dataset, tmp_path, override))
