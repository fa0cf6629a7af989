"""``python -m eval.calibrate``: learns from the policy's own episodes, and writes beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import h5py
import pytest
from paths import REPOSITORY

import asd_policy
from asd_policy.formats import fingerprint
from asd_policy.sampling import parse_sampler

pytest_plugins = ["eval_fixtures"]


def run(*overrides):
    command = [sys.executable, "-m", "eval.calibrate", *map(str, overrides)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "policy")


@pytest.mark.sim
def test_learns_a_gain_and_what_to_expect(folder):
    ddpm, asd = map(parse_sampler, ("ddpm", "asd"))
    before = fingerprint(folder, ddpm), fingerprint(folder, asd)
    done = run(f"checkpoint={folder}", "chunks=48")
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
    planner = asd_policy.load_policy(folder, device="cpu").planner
    assert planner.gain is not None and len(planner.expectation.known) == 48
    assert float(planner.gain.error[0].max()) < 10, "an episode's first chunk is expected, too"
    after = fingerprint(folder, ddpm), fingerprint(folder, asd)
    assert after[0] == before[0] and after[1] != before[1]


@pytest.mark.sim
@pytest.mark.parametrize(
    ("chunks", "message"),
    [(15, "chunks: expected a whole number of at least 16"), (20, "chunks: 20 are all of one")],
)
def test_refuses_what_it_could_not_learn_from(folder, chunks, message):
    before = fingerprint(folder)
    done = run(f"checkpoint={folder}", f"chunks={chunks}")
    assert done.returncode == 2 and message in done.stderr
    assert fingerprint(folder) == before


def test_learns_from_what_a_robot_recorded(recorded):
    folder, file = recorded
    done = run(f"checkpoint={folder}", f"recorded={file}", "chunks=40")
    assert done.returncode == 0, done.stderr
    planner = asd_policy.load_policy(folder, device="cpu").planner
    assert planner.gain is not None and len(planner.expectation.known) == 40


def test_says_what_recordings_must_hold(recorded, tmp_path):
    folder, file = recorded
    for overrides, message in [
        ([], "there is no simulator of task 'my_robot'"),
        ([f"recorded={tmp_path / 'none.hdf5'}"], "not an HDF5 file here"),
        ([f"recorded={file}"], "holds 49 chunks of 8 steps, in 6 episodes"),
    ]:
        done = run(f"checkpoint={folder}", *overrides)
        assert done.returncode == 2 and message in done.stderr
    with h5py.File(file, "r+") as opened:
        del opened["data/demo_3/obs/agent_pos"]
    done = run(f"checkpoint={folder}", f"recorded={file}", "chunks=40")
    assert done.returncode == 2 and "demo_3: the policy sees" in done.stderr


def test_asks_for_a_folder_to_write_to_before_it_begins(tmp_path):
    done = run(f"checkpoint={tmp_path / 'model.pth'}")
    assert done.returncode == 2 and "asd_policy.formats.convert" in done.stderr
