"""Other projects' checkpoints that are damaged, renamed, absurd or of an unknown kind."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from golden import fixture
from safetensors.torch import load_file, save_file

from asd_policy.errors import CheckpointError
from asd_policy.formats import read_checkpoint
from asd_policy.formats.inspect import main as inspect

CHI = "chi_transformer_lowdim_square/chi_transformer_lowdim_square.ckpt"
ROBOMIMIC = "robomimic050_dp_absrot6d/model_epoch_8.pth"


def with_tensors(value):
    """The file's data with real tensors, to be saved again by torch itself."""
    if hasattr(value, "read"):
        return value.read()
    if isinstance(value, dict):
        return {key: with_tensors(item) for key, item in value.items()}
    return [with_tensors(item) for item in value] if isinstance(value, list) else value


def resaved(source, spoil, target):
    from asd_policy.formats.torch_files import TorchFile

    with TorchFile(fixture(source)) as file:
        content = with_tensors(file.content())
    spoil(content)
    torch.save(content, target)
    return target


def weights(content):
    return content["state_dicts"]["ema_model"]


def drop(name):
    return lambda content: weights(content).pop(name)


def renamed(old, new):
    return lambda content: weights(content).update({new: weights(content).pop(old)})


def reshaped(name, *shape):
    return lambda content: weights(content).update({name: torch.zeros(shape)})


def config(path, value):
    def spoil(content):
        *folders, name = path.split(".")
        tree = content["cfg"]
        for folder in folders:
            tree = tree[folder]
        tree[name] = value

    return spoil


SCALE = "normalizer.params_dict.action.scale"
SPOILED_CHI = {
    "no moving average": (lambda c: c["state_dicts"].pop("ema_model"), "no ema_model"),
    "no configuration": (lambda c: c.update(cfg=None), "cfg and state_dicts"),
    "no policy": (config("policy._target_", "x.SomethingElse"), "a SomethingElse; supported"),
    "no normaliser": (drop(SCALE), f"{SCALE} is missing"),
    "no statistics of observations": (drop("normalizer.params_dict.obs.offset"), "obs.offset is"),
    "a normaliser of zeros": (reshaped(SCALE, 10), "a scale of zero"),
    "a normaliser of another size": (
        reshaped("normalizer.params_dict.obs.scale", 7),
        "expected 23",
    ),
    "a missing tensor": (drop("model.ln_f.weight"), r"missing tensors \['ln_f.weight'\]"),
    "a renamed tensor": (renamed("model.head.bias", "model.tail.bias"), r"unknown .*tail\.bias"),
    "a tensor too many": (
        lambda c: weights(c).update({"model.extra": torch.zeros(1)}),
        r"unknown tensors \['extra'\]",
    ),
    "another shape": (reshaped("model.head.bias", 3), r"expected shape \(10,\), got \(3,\)"),
    "NaN": (
        lambda c: weights(c)["model.head.bias"].fill_(torch.nan),
        "head.bias holds NaN or infinity",
    ),
    "a text for a tensor": (lambda c: weights(c).update({SCALE: "x"}), "is missing"),
    "no head count": (config("policy.model.n_head", None), "n_head: expected an integer"),
    "heads that do not divide": (config("policy.model.n_head", 7), "n_emb: expected a multiple"),
    "an absurd horizon": (config("horizon", 10**9), "pred_horizon: expected an integer"),
    "a negative horizon": (config("horizon", -4), "horizon: expected an integer"),
    "too many actions": (config("n_action_steps", 50), "51 actions are needed"),
    "code in a needed value": (
        config("n_action_steps", "${eval:'__import__(\"os\").getpid()'}"),
        "which is not evaluated here",
    ),
    "a loop of references": (config("horizon", "${horizon}"), "which is not evaluated here"),
    "absurd steps": (
        config("policy.noise_scheduler.num_train_timesteps", 10**12),
        "expected an integer in 1",
    ),
    "an unknown schedule": (
        config("policy.noise_scheduler.beta_schedule", "cubic"),
        "unknown β schedule 'cubic'",
    ),
    "an unknown prediction": (
        config("policy.noise_scheduler.prediction_type", "score"),
        "unknown prediction 'score'",
    ),
    "another process": (
        config("policy.noise_scheduler._target_", "diffusers.EulerDiscreteScheduler"),
        "expected DDPMScheduler or DDIMScheduler, got 'diffusers.Euler",
    ),
    "thresholding": (config("policy.noise_scheduler.thresholding", True), "thresholding = True"),
    "no causal mask": (config("policy.model.causal_attn", False), "causal_attn False"),
    "unknown observations": (
        config("task.obs_keys", ["object", "camera_pose"]),
        "does not say which have how many",
    ),
    "observations that are no list": (config("task.obs_keys", 3), None),
    "a scheduler that is a number": (config("policy.noise_scheduler", 3), "expected a dictionary"),
    "frames as text": (config("n_obs_steps", "two"), "n_obs_steps: expected an integer"),
    "latency as text": (config("n_latency_steps", "soon"), "not as its format says"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED_CHI.values(), ids=SPOILED_CHI)
def test_a_spoiled_checkpoint_of_diffusion_policy(tmp_path, capsys, spoil, message):
    path = resaved(CHI, spoil, tmp_path / "spoiled.ckpt")
    if message is None:  # not known is not wrong: then a frame is one vector
        assert read_checkpoint(path).spec.observations[0].key == "obs"
        return
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)
    assert inspect([str(path)]) == 2
    assert "error: " in capsys.readouterr().err


def net(content):
    return content["model"]["ema"]


def json_config(change):
    def spoil(content):
        tree = json.loads(content["config"])
        change(tree)
        content["config"] = json.dumps(tree)

    return spoil


BIAS = "policy.noise_pred_net.final_conv.1.bias"
SPOILED_ROBOMIMIC = {
    "another algorithm": (lambda c: c.update(algo_name="bc"), "expected 'diffusion_policy'"),
    "a configuration that is no JSON": (lambda c: c.update(config="{"), "config: expected JSON"),
    "a configuration that is deep": (lambda c: c.update(config="[" * 10**5), "expected JSON"),
    "no nets": (lambda c: c.update(model={"ema": None}), "expected a dictionary with 'nets'"),
    "no horizons": (json_config(lambda t: t["algo"].pop("horizon")), "horizon: expected"),
    "an absurd horizon": (
        json_config(lambda t: t["algo"]["horizon"].update(prediction_horizon=10**9)),
        "pred_horizon: expected an integer",
    ),
    "a missing tensor": (lambda c: net(c).pop(BIAS), "missing tensors"),
    "another shape": (lambda c: net(c).update({BIAS: torch.zeros(3)}), "expected shape"),
    "NaN": (lambda c: net(c)[BIAS].fill_(torch.nan), "NaN or infinity"),
    "an encoder that is no ResNet": (
        lambda c: net(c).update({"policy.obs_encoder.x": torch.zeros(1)}),
        "tensors outside of",
    ),
    "no shapes": (lambda c: c.update(shape_metadata={}), "ac_dim|all_shapes"),
    "no statistics of an action": (
        lambda c: c["action_normalization_stats"].pop("action_dict/gripper"),
        "no scale and offset of 'action_dict/gripper'",
    ),
    "a scale of zero": (
        lambda c: c["action_normalization_stats"]["action_dict/gripper"].update(scale=[[0.0]]),
        "a scale of zero",
    ),
    "rotations that become Euler angles": (
        json_config(
            lambda t: t["train"]["action_config"]["action_dict/abs_rot_6d"].update(
                convert_at_runtime="rot_euler"
            )
        ),
        "become 'rot_euler'",
    ),
    "statistics as text": (
        lambda c: c["action_normalization_stats"]["action_dict/gripper"].update(scale="one"),
        "expected numbers",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED_ROBOMIMIC.values(), ids=SPOILED_ROBOMIMIC)
def test_a_spoiled_checkpoint_of_robomimic(tmp_path, spoil, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(resaved(ROBOMIMIC, spoil, tmp_path / "spoiled.pth"))


def edit(change):
    def spoil(folder):
        path = folder / "config.json"
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))

    return spoil


def edit_tensors(change):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def writable(source, folder):
    """A copy to be changed."""
    shutil.copytree(source, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    return folder


LEROBOT_BIAS = "diffusion.unet.final_conv.1.bias"
SPOILED_LEROBOT = {
    "another policy": (edit(lambda t: t.update(type="act")), "expected 'diffusion', got 'act'"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: missing"),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x10" * 100),
        "not a readable safetensors",
    ),
    "weights that are a pickle": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n"),
        "not a readable safetensors",
    ),
    "no features": (edit(lambda t: t.update(input_features=3)), "expected an object, got 3"),
    "a feature without a shape": (
        edit(lambda t: t["input_features"].update(x={"type": "STATE"})),
        "x: expected a type and a shape",
    ),
    "an absurd feature": (
        edit(lambda t: t["input_features"]["observation.state"].update(shape=[10**12])),
        "expected an integer in 1",
    ),
    "no action": (
        edit(lambda t: t.update(output_features={"b": {"type": "ACTION", "shape": [1]}})),
        "expected 'action' among them",
    ),
    "no statistics": (
        edit_tensors(lambda t: t.pop("normalize_inputs.buffer_observation_state.min")),
        "statistic .*buffer_observation_state.min is missing",
    ),
    "an unknown normalisation": (
        edit(lambda t: t.update(normalization_mapping={"STATE": "QUANTILE", "ACTION": "MIN_MAX"})),
        "unknown normalisation 'QUANTILE'",
    ),
    "a missing tensor": (edit_tensors(lambda t: t.pop(LEROBOT_BIAS)), "missing tensors"),
    "a tensor too many": (
        edit_tensors(lambda t: t.update({"diffusion.unet.x": torch.zeros(1)})),
        "unknown tensors",
    ),
    "NaN": (
        edit_tensors(lambda t: t.update({LEROBOT_BIAS: torch.full((7,), torch.nan)})),
        "NaN or infinity",
    ),
    "groups that do not divide": (edit(lambda t: t.update(n_groups=7)), "network: "),
    "horizons as text": (edit(lambda t: t.update(horizon="16")), "expected an integer"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED_LEROBOT.values(), ids=SPOILED_LEROBOT)
def test_a_spoiled_folder_of_lerobot(tmp_path, spoil, message):
    folder = writable(fixture("lerobot_033_state/pretrained_model"), tmp_path / "spoiled")
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def processor(side, change):
    def spoil(folder):
        path = folder / f"policy_{side}processor.json"
        tree = json.loads(path.read_text())
        change(tree["steps"])
        path.write_text(json.dumps(tree))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            processor("post", lambda steps: steps.append({"registry_name": "absolute_actions"})),
            r"steps \['absolute_actions'\] are not among",
        ),
        (processor("post", lambda steps: steps.pop(0)), "expected one unnormalizer_processor"),
        (processor("pre", lambda steps: steps[-1].update(config=[])), "expected a norm_map"),
        (processor("pre", lambda steps: steps[-1]["config"].update(eps=1)), "expected a norm_map"),
        (
            processor("pre", lambda steps: steps[-1]["config"]["norm_map"].update(ENV="MAGIC")),
            "unknown normalisation 'MAGIC'",
        ),
    ],
)
def test_processors_that_do_something_else(tmp_path, spoil, message):
    folder = writable(fixture("lerobot_044_state/pretrained_model"), tmp_path / "spoiled")
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "expected a .npz file"),
        ({}, "no y_bounds among"),
        ({"y_bounds": np.zeros((2, 3))}, "expected 18 finite numbers"),
        ({"y_bounds": np.full((2, 9), np.nan)}, "expected 18 finite numbers"),
        ({"y_bounds": np.array([object()] * 18)}, "expected a .npz file"),
    ],
)
def test_a_spoiled_scaler_of_beso(tmp_path, arrays, message):
    path = tmp_path / "scaler.npz"
    path.write_text("no archive") if arrays is None else np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(fixture("beso_kitchen/c_beso_1"), scaler=path)


def test_a_run_of_beso_that_does_not_say_how_it_scales(tmp_path):
    shutil.copytree(fixture("beso_kitchen/c_beso_1"), tmp_path / "run")
    config = tmp_path / "run" / ".hydra" / "config.yaml"
    config.chmod(0o644)
    config.write_text(config.read_text().replace("scale_data: false", ""))
    np.savez(tmp_path / "scaler.npz")
    with pytest.raises(CheckpointError, match="scale_data: expected true or false, got None"):
        read_checkpoint(tmp_path / "run", scaler=tmp_path / "scaler.npz")


def test_a_run_of_beso_whose_configuration_stands_for_gigabytes(tmp_path):
    run = writable(fixture("beso_kitchen/c_beso_1"), tmp_path / "run")
    config = run / ".hydra" / "config.yaml"
    bomb = "\n".join(f"b{n}: &b{n} {{<<: [*b{n - 1}, *b{n - 1}]}}" for n in range(1, 60))
    config.write_text(f"b0: &b0 {{x: 1}}\n{bomb}\n{config.read_text()}")
    np.savez(tmp_path / "scaler.npz")
    with pytest.raises(CheckpointError, match="expected plain YAML, got an alias"):
        read_checkpoint(run, scaler=tmp_path / "scaler.npz")


def test_a_folder_or_file_of_no_known_kind(tmp_path):
    with pytest.raises(CheckpointError, match="missing; expected a checkpoint: native: "):
        read_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoint of a known format"):
        read_checkpoint(tmp_path)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=r"holds \['weights'\], which is no known format"):
        read_checkpoint(tmp_path / "file.pt")
