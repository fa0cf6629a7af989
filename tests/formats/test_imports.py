"""Other projects' checkpoints: what their own code gave is what comes out here."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from golden import (
    NETWORK,
    SAMPLE,
    fixture,
    golden,
    injected,
    largest,
    plan,
    policy_with,
    pose_difference,
    scaler_of,
)

import asd_policy
from asd_policy.errors import CheckpointError
from asd_policy.formats import chi, read_checkpoint, robomimic
from asd_policy.formats.torch_files import TorchFile
from asd_policy.policies.observation import read_observation
from asd_policy.policies.rotation import pose_from_6d

ROBOMIMIC_KEYS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


def network_difference(checkpoint, arrays, name):
    network = getattr(checkpoint.network, "network", checkpoint.network)  # without its encoders
    inputs = arrays["net_sample"], arrays["net_timestep"], arrays["net_cond"].flatten(1)
    return largest(network(*inputs), arrays[name])


def histories(spec, arrays):
    """The first To frames of every row, images as the bytes that a camera gives."""
    frames = [
        {e.key: arrays[f"raw_obs.{e.key}"][:, step].numpy() for e in spec.observations}
        for step in range(spec.obs_horizon)
    ]
    rows = len(arrays["init_noise"])
    read = [read_observation(spec, frame, batch=rows) for frame in frames]
    return torch.from_numpy(np.stack(read, axis=1))


def edited(module, path, change):
    """A checkpoint of which something is changed before it is read."""
    with TorchFile(fixture(path)) as file:
        content = file.content()
        change(content)
        return module.read(content, path, "table")


@pytest.mark.parametrize("name", ["lerobot_033_state", "lerobot_044_state"])
def test_lerobots_policy_looks_at_no_other_features(tmp_path, name):
    """A data set may have efforts and velocities beside the state (LeRobot #1665)."""
    source, folder = fixture(f"{name}/pretrained_model"), tmp_path / "more"
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.chmod(0o644)
    config = json.loads(path.read_text())
    config["input_features"]["observation.effort"] = {"type": "STATE", "shape": [3]}
    config["output_features"]["action.base"] = {"type": "ACTION", "shape": [2]}
    path.write_text(json.dumps(config))
    assert read_checkpoint(folder).spec == read_checkpoint(source).spec


def test_lerobots_processors_have_their_own_rules(tmp_path):
    source, folder = fixture("lerobot_044_state/pretrained_model"), tmp_path / "other"
    shutil.copytree(source, folder)
    path = folder / "policy_preprocessor.json"
    path.chmod(0o644)
    tree = json.loads(path.read_text())
    tree["steps"][-1]["config"]["norm_map"]["STATE"] = "IDENTITY"
    tree["steps"][-1]["config"]["normalize_observation_keys"] = ["observation.state"]
    path.write_text(json.dumps(tree))
    normalizers = read_checkpoint(folder).normalizers
    for key in ("observation.state", "observation.environment_state"):
        assert bool((normalizers[key].scale == 1).all() and (normalizers[key].offset == 0).all())


@pytest.mark.parametrize(("diffusers", "posterior"), [("0111", "table"), ("0421", "ratio")])
@pytest.mark.parametrize("name", ["chi_unet_lowdim_square", "chi_transformer_lowdim_square"])
@torch.inference_mode()
def test_diffusion_policy_low_dim(name, diffusers, posterior):
    checkpoint = read_checkpoint(fixture(f"{name}/{name}.ckpt"), posterior)
    arrays = golden(f"{name}/golden_diffusers{diffusers}.npz")
    assert network_difference(checkpoint, arrays, "net_out_ema") < NETWORK
    assert network_difference(checkpoint, arrays, "net_out_raw") > 0.01  # the trap
    planned = plan(checkpoint, arrays["obs"], injected(arrays["init_noise"], arrays["step_noise"]))
    assert largest(planned.result.x, arrays["sample_final"]) < SAMPLE
    spec = checkpoint.spec
    assert (spec.task, spec.action_mode, spec.action_dim) == ("square", "absolute", 7)
    assert [entry.key for entry in spec.observations] == list(ROBOMIMIC_KEYS)
    stop = spec.first_action + spec.action_horizon
    assert (spec.first_action, stop) == (arrays["slice_start"], arrays["slice_end"])
    executed = planned.actions[:, spec.first_action : stop]
    assert pose_difference(executed, arrays["env_action"]) < SAMPLE


@pytest.mark.parametrize("name", ["chi_unet_lowdim_pusht", "chi_unet_image_pusht"])
@torch.inference_mode()
def test_diffusion_policy_on_pusht(name):
    checkpoint = read_checkpoint(fixture(f"{name}/{name}.ckpt"), "table")
    arrays = golden(f"{name}/golden_diffusers0111.npz")
    assert network_difference(checkpoint, arrays, "net_out_ema") < NETWORK
    spec = checkpoint.spec
    assert (spec.action_mode, spec.action_dim, spec.first_action) == ("position", 2, 1)
    noise = injected(arrays["init_noise"], arrays["step_noise"])
    planned = plan(checkpoint, histories(spec, arrays), noise)
    assert largest(planned.result.x, arrays["sample_final"]) < SAMPLE
    pixels = SAMPLE / checkpoint.normalizers["action"].scale.min()
    assert largest(planned.actions, arrays["action_pred"]) < pixels
    executed = slice(spec.first_action, spec.first_action + spec.action_horizon)
    assert largest(planned.actions[:, executed], arrays["action"]) < pixels


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("features", {}),
        ("features_crop_79_77", {"crop_shape": [79, 77]}),  # half a pixel, either way
        ("features_random_crop_off", {"random_crop": False}),  # then there is no crop at all
    ],
)
@torch.inference_mode()
def test_diffusion_policys_own_image_encoder(name, options):
    path = "chi_unet_image_pusht"
    arrays = golden(f"{path}/golden_diffusers0111.npz")

    def change(content):
        content["cfg"]["policy"]["obs_encoder"].update(options)

    checkpoint = edited(chi, f"{path}/{path}.ckpt", change)
    images = arrays["raw_obs.image"].flatten(0, 1).movedim(-1, 1) / 255
    features = checkpoint.network.encoders[0](2 * images - 1)
    assert largest(features, arrays[name][:, : features.shape[1]]) < NETWORK


@torch.inference_mode()
def test_the_two_ways_to_round_the_posterior_are_told_apart():
    name = "chi_transformer_lowdim_square"
    arrays = golden(f"{name}/golden_diffusers0111.npz")
    noise = injected(arrays["init_noise"], arrays["step_noise"])
    planned = plan(read_checkpoint(fixture(f"{name}/{name}.ckpt")), arrays["obs"], noise)
    assert SAMPLE < largest(planned.result.x, arrays["sample_final"]) < 1e-3


@pytest.mark.parametrize(
    ("path", "mode", "expected"),
    [
        ("robomimic050_dp_absrot6d/model_epoch_8.pth", "absolute", "net_out_ema"),
        ("robomimic050_dp_delta/model_epoch_1.pth", "delta", "net_out_ema"),
        ("robomimic050_dp_image/model_epoch_1.pth", "absolute", "net_out"),  # no average
    ],
)
@torch.inference_mode()
def test_robomimic_acts_as_its_rollout_policy(monkeypatch, path, mode, expected):
    checkpoint = read_checkpoint(fixture(path), "table")
    arrays = golden(f"{path.split('/')[0]}/golden_diffusers0111.npz")
    assert network_difference(checkpoint, arrays, expected) < NETWORK
    if expected == "net_out_ema":
        assert network_difference(checkpoint, arrays, "net_out_raw") > 0.01
    spec = checkpoint.spec
    keys = [entry.key for entry in spec.observations]
    assert (spec.action_mode, keys) == (mode, list(arrays["obs_key_order"]))
    policy = policy_with(checkpoint, monkeypatch, arrays["init_noise"], arrays["step_noise"])
    difference = pose_difference if spec.action_rotation else largest
    for step, action in enumerate(arrays["policy_action"]):
        frame = {key: arrays[f"raw_obs.{key}"][step].numpy()[None] for key in keys}
        assert difference(policy.act(frame)[0], action) < SAMPLE


@torch.inference_mode()
def test_robomimics_image_encoder():
    path = "robomimic050_dp_image"
    checkpoint = read_checkpoint(fixture(f"{path}/model_epoch_1.pth"))
    arrays = golden(f"{path}/golden_diffusers0111.npz")
    images = arrays["raw_obs.agentview_image"].movedim(-1, 1) / 255
    features = checkpoint.network.encoders[0](images)
    assert largest(features, arrays["features"][:, : features.shape[1]]) < NETWORK


def arms(**kinds):
    """A composite controller as robosuite describes them since 1.5."""
    sides = {side: {"input_type": kind} for side, kind in kinds.items()}
    return {"type": "BASIC", "body_parts": {"arms": sides, "torso": {"type": "JOINT_POSITION"}}}


def test_a_controller_of_no_known_kind_is_named():
    def change(content):
        kinds = {"right": {"input_type": ["absolute"]}}
        content["env_metadata"]["env_kwargs"]["controller_configs"] = {"body_parts": kinds}

    with pytest.raises(CheckpointError, match="action_mode"):
        edited(robomimic, "robomimic050_dp_delta/model_epoch_1.pth", change)


@pytest.mark.parametrize(
    ("controllers", "mode"),
    [
        ({"type": "OSC_POSE", "control_delta": True}, "delta"),
        ({"type": "OSC_POSE", "control_delta": False}, "absolute"),
        ([{"type": "OSC_POSE", "control_delta": False}] * 2, "absolute"),
        ({"type": "BASIC", "body_parts": {"right": {"input_type": "absolute"}}}, "absolute"),
        ({"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE"}}}, "delta"),
        (arms(right="delta"), "delta"),
        (arms(right="absolute", left="absolute"), "absolute"),
        (arms(right="absolute", left="delta"), "unknown"),
        ({"type": "OSC_POSE", "control_delta": False, "input_type": None}, "absolute"),
        ({"type": "OSC_POSE", "control_delta": False, "input_type": "absolute"}, "absolute"),
        ({"type": "OSC_POSE", "control_delta": False, "input_type": "delta"}, "unknown"),
        ({"type": "BASIC", "body_parts": {"right": {"control_delta": True}}}, "delta"),
        ({"type": "BASIC", "body_parts": {"right": {"control_delta": False}}}, "unknown"),
        (None, "delta"),
    ],
)
def test_what_robomimics_actions_mean_is_what_the_controllers_say(controllers, mode):
    def change(content):
        content["env_metadata"]["env_kwargs"]["controller_configs"] = controllers

    checkpoint = edited(robomimic, "robomimic050_dp_delta/model_epoch_1.pth", change)
    assert checkpoint.spec.action_mode == mode


@pytest.mark.parametrize(
    "name", ["lerobot_033_state", "lerobot_033_image", "lerobot_044_state", "lerobot_044_image"]
)
@torch.inference_mode()
def test_lerobot_acts_as_its_select_action(monkeypatch, name):
    checkpoint = read_checkpoint(fixture(f"{name}/pretrained_model"))
    arrays = golden(f"{name}/golden_diffusers0352.npz")
    assert network_difference(checkpoint, arrays, "net_out") < NETWORK
    policy = policy_with(checkpoint, monkeypatch, arrays["init_noise"], arrays["step_noise"])
    keys = [entry.key for entry in checkpoint.spec.observations]
    for step in range(arrays["select_action"].shape[1]):
        actions = policy.act({key: arrays[f"raw_obs.{key}"][:, step].numpy() for key in keys})
        assert largest(actions, arrays["select_action"][:, step]) < SAMPLE


@pytest.mark.parametrize(("diffusers", "posterior"), [("0111", "table"), ("0421", "ratio")])
@torch.inference_mode()
def test_diffusion_policy_with_images(diffusers, posterior):
    name = "chi_unet_hybrid_image_square"
    checkpoint = read_checkpoint(fixture(f"{name}/{name}.ckpt"), posterior)
    arrays = golden(f"{name}/golden_diffusers{diffusers}.npz")
    assert network_difference(checkpoint, arrays, "net_out_ema") < NETWORK
    spec = checkpoint.spec
    assert [entry.key for entry in spec.observations] == list(arrays["obs_key_order"])
    noise = injected(arrays["init_noise"], arrays["step_noise"])
    planned = plan(checkpoint, histories(spec, arrays), noise)
    assert largest(planned.result.x, arrays["sample_final"]) < SAMPLE
    assert pose_difference(planned.actions, pose_from_6d(arrays["action_pred"].double())) < SAMPLE


BESO = ["beso_kitchen", "beso_block_push", "beso_two_layers"]


@pytest.fixture
def scaler(tmp_path):
    return scaler_of("beso_kitchen", tmp_path)


@pytest.mark.parametrize("name", BESO)
@torch.inference_mode()
def test_besos_network(name, tmp_path):
    checkpoint = read_checkpoint(fixture(f"{name}/c_beso_1"), scaler=scaler_of(name, tmp_path))
    arrays = golden(f"{name}/golden.npz")
    goal = arrays["net_goal"].flatten(1)[:, None].expand(-1, checkpoint.spec.obs_horizon, -1)
    condition = torch.cat([arrays["net_state"], goal], dim=2).flatten(1)
    output = checkpoint.network(arrays["net_action"], arrays["net_sigma"], condition)
    assert largest(output, arrays["inner_out"]) < NETWORK
    chain = checkpoint.spec.build_chain()
    assert largest(chain.network_time, arrays["sigmas_100"][:-1]) < 1e-6


@pytest.mark.parametrize("name", BESO)
@torch.inference_mode()
def test_beso_acts_as_its_agent_while_its_window_grows_and_after(name, tmp_path, monkeypatch):
    checkpoint = read_checkpoint(fixture(f"{name}/c_beso_1"), scaler=scaler_of(name, tmp_path))
    arrays = golden(f"{name}/golden.npz")
    window, (calls, action_dim) = checkpoint.spec.obs_horizon, arrays["action_100"].shape
    initial = torch.zeros(calls, 1, window, action_dim)
    steps = arrays["step_noise_100"].clone()  # right-aligned in the file
    for call in range(calls):
        tokens = min(call + 1, window)
        initial[call, 0, tokens - 1] = arrays["init_noise_100"][call, 0, 0]
        steps[call] = steps[call].roll(tokens - window, dims=2)
    policy = policy_with(checkpoint, monkeypatch, initial, steps)
    goal = arrays["raw_obs.goal_observation"].numpy()[None]
    for call, expected in enumerate(arrays["action_100"]):
        frame = arrays["raw_obs.observation"][call].numpy()[None]
        action = policy.act({"observation": frame, "goal_observation": goal})
        assert largest(action[0], expected) < SAMPLE


def test_beso_without_its_scaler_says_what_is_missing():
    with pytest.raises(CheckpointError, match="x_mean and x_std .* scaler=FILE"):
        read_checkpoint(fixture("beso_kitchen/c_beso_1"))


def test_beso_under_asd(scaler):
    path = fixture("beso_kitchen/c_beso_1")
    policy = asd_policy.load_policy(path, sampler="asd-paper:24", device="cpu", scaler=scaler)
    policy.reset(seed=1)
    frame = {e.key: torch.zeros(e.shape).numpy() for e in policy.spec.observations}
    for _ in range(6):
        assert policy.act(frame).shape == (9,)
        assert policy.last_plan.calls[0] < 100


@pytest.mark.parametrize(
    "path",
    [
        "chi_transformer_lowdim_square/chi_transformer_lowdim_square.ckpt",
        "chi_unet_image_pusht/chi_unet_image_pusht.ckpt",
        "lerobot_033_state/pretrained_model",
        "lerobot_044_image/pretrained_model",
        "robomimic050_dp_image/model_epoch_1.pth",
    ],
)
def test_an_imported_policy_runs_under_every_exact_sampler(path):
    policy = asd_policy.load_policy(fixture(path), sampler="asd", device="cpu")
    frame = {e.key: torch.zeros(e.shape).numpy() for e in policy.spec.observations}
    for sampler in ("asd", "asd-paper:24"):
        quick = policy.with_sampler(sampler)
        quick.reset(seed=1)
        assert quick.act(frame).shape == (policy.spec.action_dim,)
        assert quick.last_plan.calls[0] < policy.spec.chain["num_steps"]


def test_a_converted_checkpoint_acts_as_its_source(tmp_path, capsys):
    from asd_policy.formats.convert import main

    source = fixture("lerobot_044_image/pretrained_model")
    assert main([str(source), str(tmp_path / "native")]) == 0
    assert "eval.calibrate" in capsys.readouterr().out
    policies = [
        asd_policy.load_policy(path, sampler="ddpm", device="cpu")
        for path in (source, tmp_path / "native")
    ]
    frame = {e.key: torch.full(e.shape, 0.5).numpy() for e in policies[0].spec.observations}
    actions = []
    for policy in policies:
        policy.reset(seed=3)
        actions.append(policy.act(frame))
    assert (actions[0] == actions[1]).all()
    assert main([str(source), str(tmp_path / "native")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_converted_run_of_beso_needs_its_scaler_no_more(tmp_path):
    from asd_policy.formats.convert import main

    source, native = fixture("beso_two_layers/c_beso_1"), tmp_path / "native"
    scaler = scaler_of("beso_two_layers", tmp_path)
    assert main([str(source), str(native), "--scaler", str(scaler)]) == 0
    policies = [
        asd_policy.load_policy(source, sampler="ddpm", device="cpu", scaler=scaler),
        asd_policy.load_policy(native, sampler="ddpm", device="cpu"),
    ]
    frame = {e.key: torch.full(e.shape, 0.1).numpy() for e in policies[0].spec.observations}
    for policy in policies:
        policy.reset(seed=3)
    for _ in range(3):
        actions = [policy.act(frame) for policy in policies]
        assert (actions[0] == actions[1]).all()


def test_inspect_says_what_is_there(capsys):
    from asd_policy.formats.inspect import main

    path = fixture("chi_transformer_lowdim_square/chi_transformer_lowdim_square.ckpt")
    assert main([str(path)]) == 0
    said = capsys.readouterr().out
    for fact in (
        "diffusion_policy",
        "square",
        "chi_transformer",
        "robot0_eef_quat (4,)",
        "squaredcos",
    ):
        assert fact in said
