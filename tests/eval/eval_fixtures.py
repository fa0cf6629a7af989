"""Fixtures of the tests of evaluation, which name this module in `pytest_plugins`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_policies import NUM_STEPS, save_tiny_policy

import asd_policy
from asd_policy.formats import fingerprint
from eval.episodes import Experiment


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PushT policy's folder."""
    return save_tiny_policy(
        "pusht", tmp_path_factory.mktemp("checkpoints") / "pusht", 2 / 512, -1.0
    )


@pytest.fixture
def recorded(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A policy of a robot that is not simulated, and a file of what it saw in six episodes."""
    folder = tmp_path / "my_robot"
    shutil.copytree(checkpoint, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["policy"]["task"] = "my_robot"
    path.write_text(json.dumps(config))
    spec = asd_policy.load_policy(folder, device="cpu").spec
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "seen.hdf5", "w") as file:
        for episode in range(6):
            for entry in spec.observations:
                seen = rng.normal(300, 40, (60 + episode, *entry.shape)).astype(np.float32)
                file[f"data/demo_{episode}/obs/{entry.key}"] = seen
    return folder, tmp_path / "seen.hdf5"


@pytest.fixture(scope="session")
def experiment(checkpoint: Path) -> Experiment:
    """Short PushT episodes with that policy."""
    return Experiment(
        "pusht",
        checkpoint,
        {"action_mode": "position"},
        dict.fromkeys(("ddpm", "refine:4"), fingerprint(checkpoint)),
        NUM_STEPS,
        20,
        "cpu",
    )
