"""Fixtures of the tests of evaluation, which name this module in `pytest_plugins`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_policies import NUM_STEPS, save_tiny_policy

from asd_policy.formats import fingerprint
from eval.episodes import Experiment


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PushT policy's folder."""
    return save_tiny_policy(
        "pusht", tmp_path_factory.mktemp("checkpoints") / "pusht", 2 / 512, -1.0
    )


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
