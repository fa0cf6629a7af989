"""The native checkpoint: what is written is read back, and anything else is named."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from asd_policy.errors import CheckpointError
from asd_policy.formats import fingerprint, load_checkpoint, save_checkpoint

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def test_reads_back_what_was_written(tiny_checkpoint, tiny_folder):
    loaded = load_checkpoint(tiny_folder)
    assert loaded.spec == tiny_checkpoint.spec
    assert loaded.provenance == tiny_checkpoint.provenance
    expected = tiny_checkpoint.network.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.network.state_dict().items())
    for key, normalizer in loaded.normalizers.items():
        assert torch.equal(normalizer.scale, tiny_checkpoint.normalizers[key].scale)
        assert torch.equal(normalizer.offset, tiny_checkpoint.normalizers[key].offset)
    assert sorted(p.name for p in tiny_folder.parent.iterdir()) == ["tiny"]


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_weights_and_halves_the_file(
    tiny_checkpoint, tiny_folder, tmp_path, stored
):
    save_checkpoint(tiny_checkpoint, tmp_path / "half", stored=stored)
    loaded = load_checkpoint(tmp_path / "half")
    expected = tiny_checkpoint.network.state_dict()
    for name, weight in loaded.network.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name].to(stored).float())
    for key, normalizer in loaded.normalizers.items():
        assert torch.equal(normalizer.scale, tiny_checkpoint.normalizers[key].scale)
    halved, whole = ((p / WEIGHTS).stat().st_size for p in (tmp_path / "half", tiny_folder))
    assert halved < 0.8 * whole  # the header and the normalisers stay


def test_a_weight_beyond_half_precision_is_not_stored_as_infinity(tiny_checkpoint, tmp_path):
    with torch.no_grad():
        next(tiny_checkpoint.network.parameters()).fill_(1e6)
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity as torch\.float16"):
        save_checkpoint(tiny_checkpoint, tmp_path / "half", stored=torch.float16)
    with pytest.raises(CheckpointError, match="expected one of"):
        save_checkpoint(tiny_checkpoint, tmp_path / "half", stored=torch.float64)
    assert not (tmp_path / "half").exists()


def test_a_count_of_batches_is_no_weight(tiny_checkpoint, tmp_path):
    """Of batch norm: after 65504 steps it is beyond float16."""
    tiny_checkpoint.network.register_buffer("num_batches_tracked", torch.tensor(100_000))
    save_checkpoint(tiny_checkpoint, tmp_path / "half", stored=torch.float16)
    stored = load_file(tmp_path / "half" / WEIGHTS)
    assert stored["network.num_batches_tracked"] == 100_000
    assert {t.dtype for n, t in stored.items() if n.startswith("network.")} == {
        torch.float16, torch.float32
    }  # fmt: skip


def test_the_fingerprint_is_of_the_content(tiny_checkpoint, tiny_folder, tmp_path):
    save_checkpoint(tiny_checkpoint, tmp_path / "copy")
    assert fingerprint(tiny_folder) == fingerprint(tmp_path / "copy")
    with torch.no_grad():
        next(tiny_checkpoint.network.parameters()).add_(1e-3)
    save_checkpoint(tiny_checkpoint, tmp_path / "copy")
    assert fingerprint(tiny_folder) != fingerprint(tmp_path / "copy")


def test_saving_again_keeps_the_card(tiny_checkpoint, tiny_folder):
    (tiny_folder / "README.md").write_text("a card")
    save_checkpoint(tiny_checkpoint, tiny_folder)
    assert (tiny_folder / "README.md").read_text() == "a card"
    load_checkpoint(tiny_folder)


def test_another_checkpoints_remains_are_left_alone(tiny_checkpoint, tmp_path):
    (tmp_path / ".lift.v2.k1l2.old").mkdir()
    save_checkpoint(tiny_checkpoint, tmp_path / "lift")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lift.v2.k1l2.old", "lift"]


def test_a_save_killed_between_its_renames_is_mended_by_the_next(tiny_checkpoint, tiny_folder):
    (tiny_folder / "README.md").write_text("a card")
    tiny_folder.rename(tiny_folder.with_name(".tiny.k1l2.old"))
    save_checkpoint(tiny_checkpoint, tiny_folder)
    assert (tiny_folder / "README.md").read_text() == "a card"
    assert sorted(p.name for p in tiny_folder.parent.iterdir()) == ["tiny"]


@pytest.mark.parametrize("stage", ["save", "os.replace"])
def test_a_save_that_fails_leaves_the_old_checkpoint(
    tiny_checkpoint, tiny_folder, monkeypatch, stage
):
    def fail(*_):
        raise OSError("no space left on device")

    before = fingerprint(tiny_folder)
    monkeypatch.setattr(f"asd_policy.formats.native.{stage}", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tiny_checkpoint, tiny_folder)
    monkeypatch.undo()
    assert fingerprint(tiny_folder) == before
    assert sorted(p.name for p in tiny_folder.parent.iterdir()) == ["tiny"]


def test_a_swap_that_fails_half_way_puts_the_old_checkpoint_back(
    tiny_checkpoint, tiny_folder, monkeypatch
):
    honest, moves = os.replace, []

    def replace(source, target):
        moves.append(source)
        if len(moves) == 2:
            raise OSError("interrupted")
        honest(source, target)

    before = fingerprint(tiny_folder)
    monkeypatch.setattr("asd_policy.formats.native.os.replace", replace)
    with pytest.raises(OSError, match="interrupted"):
        save_checkpoint(tiny_checkpoint, tiny_folder)
    monkeypatch.undo()
    assert fingerprint(tiny_folder) == before


def test_a_file_is_in_the_way(tiny_checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="expected a folder or nothing"):
        save_checkpoint(tiny_checkpoint, tmp_path / "file")


def edit_config(change):
    def spoil(folder):
        config = json.loads((folder / CONFIG).read_text())
        change(config)
        (folder / CONFIG).write_text(json.dumps(config))

    return spoil


def edit_tensors(change):
    def spoil(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return spoil


def policy(**values):
    return edit_config(lambda c: c["policy"].update(values))


FIRST = "network.final_conv.1.bias"
SPOILED = {
    "no config": (lambda f: (f / CONFIG).unlink(), "config.json: missing"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "model.safetensors: missing"),
    "config not JSON": (lambda f: (f / CONFIG).write_text("{"), "not valid JSON"),
    "config too deep": (lambda f: (f / CONFIG).write_text("[" * 99_999), "not valid JSON"),
    "config too long a number": (lambda f: (f / CONFIG).write_text("1" * 9_999), "not valid JSON"),
    "config not text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "config a list": (lambda f: (f / CONFIG).write_text("[]"), "expected the fields"),
    "another format": (edit_config(lambda c: c.update(format="x")), "expected format"),
    "a newer version": (edit_config(lambda c: c.update(version=4)), "version 4"),
    "an unknown section": (edit_config(lambda c: c.update(x=1)), "expected the fields"),
    "a missing field": (
        edit_config(lambda c: c["policy"].pop("chain")),
        r"missing fields \['chain",
    ),
    "an unknown field": (policy(extra=1), r"unknown fields \['extra'\]"),
    "a string as size": (policy(action_dim="2"), "action_dim: expected an integer"),
    "a boolean as size": (policy(action_dim=True), "action_dim: expected an integer"),
    "a negative size": (policy(obs_horizon=-1), "obs_horizon: expected an integer"),
    "an absurd size": (policy(action_dim=10**12), "action_dim: expected an integer"),
    "an absurd shape": (
        policy(observations=[{"key": "a", "shape": [10**12], "quaternions": [], "image": False}]),
        "shape: expected an integer",
    ),
    "too long a slice": (policy(action_horizon=16), "17 actions are needed"),
    "a slice from before": (policy(first_action=-1), "first_action: expected an index"),
    "no observations": (policy(observations=[]), "at least one entry"),
    "keys twice": (
        policy(observations=[{"key": "a", "shape": [1], "quaternions": [], "image": False}] * 2),
        "the keys must differ",
    ),
    "an entry without a shape": (
        policy(observations=[{"key": "a"}]),
        r"missing fields \['image', 'quaternions', 'shape'",
    ),
    "an unknown network": (policy(network={"name": "gpt"}), "unknown name 'gpt'"),
    "an unknown option": (policy(network={"name": "chi_unet", "depth": 3}), "network: .*depth"),
    "absurd channels": (
        policy(network={"name": "chi_unet", "down_dims": [8, 10**9]}),
        "channels|down_dims|network",
    ),
    "no channels": (policy(network={"name": "chi_unet", "down_dims": []}), "down_dims: expected"),
    "named channels": (policy(network={"name": "chi_unet", "down_dims": {"a": 1}}), "down_dims"),
    "no groups": (policy(network={"name": "chi_unet", "n_groups": 0}), "n_groups: expected"),
    "an encoder of no width": (
        policy(
            encoder={"widths": [], "feature_dim": None, "pool": "average"},
            observations=[
                {"key": "keypoint", "shape": [3, 64, 64], "quaternions": [], "image": True}
            ],
        ),
        "widths: expected 4 whole numbers",
    ),
    "an unknown chain": (policy(chain={"name": "ode"}), "unknown name 'ode'"),
    "an absurd chain": (
        policy(chain={"name": "ddpm", "num_steps": 10**12}),
        "chain: num_steps: expected an integer",
    ),
    "an absurd depth": (
        policy(network={"name": "chi_transformer", "n_layer": 10**9}),
        "n_layer: expected 1 to 256",
    ),
    "a transformer without frames": (
        policy(network={"name": "score_gpt"}, obs_horizon=9, action_horizon=1, pred_horizon=9),
        "missing tensors",
    ),
    "a quaternion that overlaps": (
        policy(
            observations=[
                {"key": "keypoint", "shape": [9, 2], "quaternions": [3, 6], "image": False}
            ],
        ),
        r"quaternions at \[3, 6\]",
    ),
    "a quaternion outside": (
        policy(
            observations=[{"key": "agent_pos", "shape": [2], "quaternions": [0], "image": False}]
        ),
        r"quaternions at \[0\]",
    ),
    "an unknown action mode": (policy(action_mode="torque"), "action_mode: expected one of"),
    "rotations of what is no pose": (
        policy(action_rotation="rotation_6d"),
        "action_rotation: expected null",
    ),
    "an unknown schedule": (
        policy(chain={"name": "ddpm", "schedule": "sigmoid"}),
        "unknown β schedule",
    ),
    "an unknown prediction": (
        policy(parametrization={"prediction": "score", "clip": 1.0, "sigma_data": None}),
        "unknown prediction",
    ),
    "weights cut short": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]),
        "not a readable safetensors",
    ),
    "weights of another kind": (
        lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04cposix\nsystem\n"),
        "not a readable safetensors",
    ),
    "a missing tensor": (edit_tensors(lambda t: t.pop(FIRST)), f"missing tensors .*{FIRST}"),
    "an unknown tensor": (
        edit_tensors(lambda t: t.update(extra=torch.zeros(1))),
        r"unknown tensors \['extra'\]",
    ),
    "a lost normaliser": (
        edit_tensors(lambda t: t.pop("normalizer.action.scale")),
        "missing tensors .*normalizer.action.scale",
    ),
    "another shape": (
        edit_tensors(lambda t: t.update({FIRST: torch.zeros(5)})),
        r"expected shape \(3,\), got \(5,\)",
    ),
    "another type": (
        edit_tensors(lambda t: t.update({FIRST: torch.zeros(3).double()})),
        "expected torch.float32",
    ),
    "NaN weights": (
        edit_tensors(lambda t: t.update({FIRST: torch.full((3,), math.nan)})),
        "NaN or infinity",
    ),
    "a normaliser of zeros": (
        edit_tensors(lambda t: t.update({"normalizer.action.scale": torch.zeros(3)})),
        "normaliser 'action': .*zero",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_a_damaged_checkpoint_is_named(tiny_folder, spoil, message):
    spoil(tiny_folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tiny_folder)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="expected a checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")
