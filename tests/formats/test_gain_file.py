"""The gain and the draft network beside the weights: theirs alone."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import asd_policy
from asd_policy.errors import CheckpointError, SamplerError
from asd_policy.formats import fingerprint, load_gain, save_checkpoint, save_gain
from asd_policy.policies import Normalizer
from asd_policy.sampling import Gain, parse_sampler

FILE = "gain.safetensors"


def test_reads_back_what_was_written(tiny_gain, tiny_expectation, tiny_folder):
    before = fingerprint(tiny_folder)
    save_gain(tiny_gain, tiny_folder, {"chunks": 16}, tiny_expectation)
    gain, expectation = load_gain(tiny_folder, 1.0)
    assert gain.clip == 1.0
    for loaded, written in ((gain, tiny_gain), (expectation, tiny_expectation)):
        assert all(torch.equal(v, written.tensors()[k]) for k, v in loaded.tensors().items())
    assert fingerprint(tiny_folder) != before
    policy = asd_policy.load_policy(tiny_folder, device="cpu")
    assert torch.equal(policy.planner.gain.slope, tiny_gain.slope)
    assert asd_policy.load_policy(tiny_folder, device="cpu", gain=False).planner.gain is None


@pytest.mark.parametrize("length", range(0, 64, 8))
def test_tensors_lie_alike_whatever_the_notes(length, tiny_gain, tiny_folder):
    """Products of matrices round by where their operands lie."""
    save_gain(tiny_gain, tiny_folder, {"note": "x" * length})
    gain, _ = load_gain(tiny_folder, 1.0)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in gain.tensors().values())


def test_expectations_without_persistence_correct_the_mean(calibrated_folder, tiny_expectation):
    path = calibrated_folder / FILE
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        notes = file.metadata()
    del tensors["expectation.persistence"]
    save_file(tensors, path, notes)
    older = load_gain(calibrated_folder, 1.0)[1].tensors()
    assert older.pop("persistence") == 0
    assert all(torch.equal(v, tiny_expectation.tensors()[k]) for k, v in older.items())
    del tensors["expectation.mean"]
    save_file(tensors, path, notes)
    with pytest.raises(CheckpointError, match="expected the tensors"):
        load_gain(calibrated_folder, 1.0)


def test_a_sampler_is_identified_by_what_it_drafts_with(tiny_gain, tiny_checkpoint, tiny_folder):
    samplers = [
        None,
        *map(
            parse_sampler,
            ("ddpm", "asd-paper", "asd", "gain:8", "refine+warm:8", "speculative-independent"),
        ),
    ]

    def changed(change):
        before = [fingerprint(tiny_folder, sampler) for sampler in samplers]
        change()
        after = [fingerprint(tiny_folder, sampler) for sampler in samplers]
        return [old != new for old, new in zip(before, after, strict=True)]

    fitted = changed(lambda: save_gain(tiny_gain, tiny_folder, {}))
    assert fitted == [True, False, False, True, True, True, False]
    drafting = changed(lambda: save_checkpoint(tiny_checkpoint, tiny_folder / "draft"))
    assert drafting == [True, False, False, False, False, False, True]

    def retrain():
        with torch.no_grad():
            next(tiny_checkpoint.network.parameters()).add_(1e-3)
        save_checkpoint(tiny_checkpoint, tiny_folder)

    assert changed(retrain) == [True] * 7


def test_a_checkpoint_without_one_has_none(tiny_folder):
    assert load_gain(tiny_folder, 1.0) == (None, None)


def test_a_gain_may_stand_alone(tiny_gain, tiny_folder):
    save_gain(tiny_gain, tiny_folder, {})
    assert load_gain(tiny_folder, 1.0)[1] is None


def test_other_weights_refuse_it(tiny_gain, tiny_folder, tiny_checkpoint, tmp_path):
    save_gain(tiny_gain, tiny_folder, {})
    with torch.no_grad():
        next(tiny_checkpoint.network.parameters()).add_(1e-3)
    save_checkpoint(tiny_checkpoint, tmp_path / "other")
    shutil.copy(tiny_folder / FILE, tmp_path / "other" / FILE)
    with pytest.raises(CheckpointError, match=r"fitted to other weights.*eval\.calibrate"):
        asd_policy.load_policy(tmp_path / "other", device="cpu")


def test_saving_keeps_the_gain_of_the_same_weights_alone(tiny_gain, tiny_folder, tiny_checkpoint):
    save_gain(tiny_gain, tiny_folder, {})
    save_checkpoint(tiny_checkpoint, tiny_folder)
    gain, _ = load_gain(tiny_folder, 1.0)
    assert gain is not None
    with torch.no_grad():
        next(tiny_checkpoint.network.parameters()).add_(1e-3)
    save_checkpoint(tiny_checkpoint, tiny_folder)
    assert not (tiny_folder / FILE).exists()


def test_damage_is_named(tiny_gain, tiny_folder):
    path = save_gain(tiny_gain, tiny_folder, {})
    tensors = load_file(path)
    save_file({"basis": tensors["basis"]}, path)
    with pytest.raises(CheckpointError, match="expected the tensors"):
        load_gain(tiny_folder, 1.0)
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_gain(tiny_folder, 1.0)


def test_a_gain_of_another_chunk_is_refused(tiny_folder):
    small = Gain(torch.eye(3), torch.rand(20, 3), torch.rand(21, 20))
    save_gain(small, tiny_folder, {})
    with pytest.raises(CheckpointError, match="expected 20 steps of size 48, got 20 of size 3"):
        asd_policy.load_policy(tiny_folder, device="cpu")


def observe(policy):
    policy.reset(seed=0)
    return policy.act({"keypoint": torch.full((9, 2), 200.0), "agent_pos": torch.full((2,), 99.0)})


def test_a_draft_network_is_used(tiny_checkpoint, tiny_folder):
    sampler = "speculative-independent:6"
    with pytest.raises(SamplerError, match="needs a draft model"):
        observe(asd_policy.load_policy(tiny_folder, sampler=sampler, device="cpu"))
    # The network as its own draft: every window is accepted.
    save_checkpoint(tiny_checkpoint, tiny_folder / "draft")
    policy = asd_policy.load_policy(tiny_folder, sampler=sampler, device="cpu")
    drafted = observe(policy)
    assert policy.last_plan.calls[0] == 4
    assert drafted == pytest.approx(observe(policy.with_sampler("ddpm")), abs=1e-4)


def test_a_draft_of_another_policy_is_refused(tiny_checkpoint, tiny_folder):
    normalizers = {
        **tiny_checkpoint.normalizers,
        "action": Normalizer(torch.ones(3), torch.ones(3)),
    }
    save_checkpoint(
        dataclasses.replace(tiny_checkpoint, normalizers=normalizers), tiny_folder / "draft"
    )
    with pytest.raises(CheckpointError, match="a draft must have the policy's own"):
        asd_policy.load_policy(tiny_folder, device="cpu")
