"""``make paper-table``, with a Python that only says what it was asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("status", "ran"), [(0, ["a", "b", "c"]), (1, ["a", "b", "c"]), (130, ["a"])]
)
def test_a_family_that_fails_does_not_keep_the_others_from_running(tmp_path, status, ran):
    """But Ctrl-C, after which the command ends with 130, does."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\necho "asked: $5"\ntest "$5" != policy=a || exit {status}\n', encoding="utf-8"
    )
    python.chmod(0o755)
    (tmp_path / ".ready").touch()
    done = subprocess.run(
        ["make", "paper-table", f"VENV={tmp_path}", "POLICIES=a b c"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [line[-1] for line in done.stdout.splitlines() if line.startswith("asked: ")] == ran
    assert (done.returncode == 0) == (status == 0), done.stderr
