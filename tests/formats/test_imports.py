"""Other projects' checkpoints: what their own code gave is what comes out here."""

from __future__ import annotations

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
)

import asd_policy
from asd_policy.errors import CheckpointError
from asd_policy.formats import read_checkpoint
from asd_policy.policies.observation import read_observation
from asd_policy.policies.rotation import pose_from_6d

ROBOMIMIC_KEYS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


def network_difference(checkpoint, arrays, name):
    inputs = arrays["net_sample"], arrays["net_timestep"], arrays["net_cond"].flatten(1)
    return largest(checkpoint.network(*inputs), arrays[name])


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


@torch.inference_mode()
def test_the_two_ways_to_round_the_posterior_are_told_apart():
    name = "chi_transformer_lowdim_square"
    arrays = golden(f"{name}/golden_diffusers0111.npz")
    noise = injected(arrays["init_noise"], arrays["step_noise"])
    planned = plan(read_checkpoint(fixture(f"{name}/{name}.ckpt")), arrays["obs"], noise)
    assert SAMPLE < largest(planned.result.x, arrays["sample_final"]) < 1e-3


@torch.inference_mode()
def test_robomimic_acts_as_its_rollout_policy(monkeypatch):
    name = "robomimic050_dp_absrot6d"
    checkpoint = read_checkpoint(fixture(f"{name}/model_epoch_8.pth"), "table")
    arrays = golden(f"{name}/golden_diffusers0111.npz")
    assert network_difference(checkpoint, arrays, "net_out_ema") < NETWORK
    assert network_difference(checkpoint, arrays, "net_out_raw") > 0.01
    assert [entry.key for entry in checkpoint.spec.observations] == list(arrays["obs_key_order"])
    policy = policy_with(checkpoint, monkeypatch, arrays["init_noise"], arrays["step_noise"])
    for step, expected in enumerate(arrays["policy_action"]):
        frame = {key: arrays[f"raw_obs.{key}"][step].numpy()[None] for key in ROBOMIMIC_KEYS}
        assert pose_difference(policy.act(frame)[0], expected) < SAMPLE


@pytest.mark.parametrize(
    "name", ["lerobot_033_state", "lerobot_033_image", "lerobot_044_state", "lerobot_044_image"]
)
@torch.inference_mode()
def test_lerobot_acts_as_its_select_action(monkeypatch, name):
    checkpoint = read_checkpoint(fixture(f"{name}/pretrained_model"))
    arrays = golden(f"{name}/golden_diffusers0352.npz")
    inner = getattr(checkpoint.network, "network", checkpoint.network)
    inputs = arrays["net_sample"], arrays["net_timestep"], arrays["net_cond"].flatten(1)
    assert largest(inner(*inputs), arrays["net_out"]) < NETWORK
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
    inner = checkpoint.network.network
    inputs = arrays["net_sample"], arrays["net_timestep"], arrays["net_cond"]
    assert largest(inner(*inputs), arrays["net_out_ema"]) < NETWORK
    spec = checkpoint.spec
    assert [entry.key for entry in spec.observations] == list(arrays["obs_key_order"])
    frames = [  # bytes, as a camera gives them
        read_observation(
            spec,
            {e.key: arrays[f"raw_obs.{e.key}"][:, t].numpy() for e in spec.observations},
            batch=2,
        )
        for t in range(2)
    ]
    noise = injected(arrays["init_noise"], arrays["step_noise"])
    planned = plan(checkpoint, torch.from_numpy(np.stack(frames, axis=1)), noise)
    assert largest(planned.result.x, arrays["sample_final"]) < SAMPLE
    assert pose_difference(planned.actions, pose_from_6d(arrays["action_pred"].double())) < SAMPLE


BESO = ["beso_kitchen", "beso_block_push", "beso_two_layers"]


def scaler_of(name, folder):
    """The statistics that BESO's own scaler had, as a user would save them."""
    arrays = golden(f"{name}/golden.npz")
    known = {n.removeprefix("scaler."): a for n, a in arrays.items() if n.startswith("scaler.")}
    numbers = {n: a.numpy() for n, a in known.items() if isinstance(a, torch.Tensor)}
    np.savez(folder / "scaler.npz", **numbers)
    return folder / "scaler.npz"


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
        "lerobot_033_state/pretrained_model",
        "lerobot_044_image/pretrained_model",
    ],
)
def test_an_imported_policy_runs_under_every_exact_sampler(path):
    policy = asd_policy.load_policy(fixture(path), sampler="asd", device="cpu")
    frame = {e.key: torch.zeros(e.shape).numpy() for e in policy.spec.observations}
    for sampler in ("asd", "asd-paper:24"):
        quick = policy.with_sampler(sampler)
        quick.reset(seed=1)
        assert quick.act(frame).shape == (7,)
        assert quick.last_plan.calls[0] < 100


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
