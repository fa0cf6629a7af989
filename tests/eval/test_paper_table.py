"""``make paper-table``, with a Python that only says what it was asked for; the protocol."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import envs

REPOSITORY = Path(__file__).resolve().parents[2]


FAMILIES = ["chi_unet", "chi_transformer", "reuss_beso"]


@pytest.fixture
def paper_table(tmp_path):
    """Runs it, with a Python that fails on U-Nets as it is told to."""

    def run(*settings: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        python.write_text(
            f'#!/bin/sh\necho "asked: $@"\ntest "$5" != policy=chi_unet || exit {status}\n',
            encoding="utf-8",
        )
        python.chmod(0o755)
        (tmp_path / ".ready").touch()
        return subprocess.run(
            ["make", "paper-table", f"VENV={tmp_path}", *settings],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def asked(done: subprocess.CompletedProcess[str]) -> list[str]:
    lines = [line for line in done.stdout.splitlines() if line.startswith("asked: ")]
    return [line.removeprefix("asked: -m eval.success ") for line in lines]


@pytest.mark.parametrize(("status", "ran"), [(0, FAMILIES), (1, FAMILIES), (130, FAMILIES[:1])])
def test_a_family_that_fails_does_not_keep_the_others_from_running(paper_table, status, ran):
    """But Ctrl-C, after which the command ends with 130, does."""
    done = paper_table(status=status)
    assert asked(done) == [
        f"--config-name paper policy={family} task=[lift,can,square,transport,tool_hang]"
        for family in ran
    ]
    assert (done.returncode == 0) == (status == 0), done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["TASKS=lift lfit"], "TASKS: of 'lfit' there is none of the policies chi_unet chi_tra"),
        (["TASKS=lift tool"], "TASKS: of 'tool' there is none"),
        (["TASKS=lift_chi"], "TASKS: of 'lift_chi' there is none"),
        (["TASKS="], "TASKS: expected some names"),
        (["POLICIES=chi_unet chi"], "POLICIES: of 'chi' there is none for the tasks lift can"),
        (["POLICIES=chi_unet unet"], "POLICIES: of 'unet' there is none"),
        (["POLICIES=beso", "TASKS=lift"], "TASKS: of 'lift' there is none of the policies beso"),
        (["POLICIES=chi_unet chi_unet_image"], "POLICIES: of 'chi_unet_image' there is none for"),
        (["POLICIES="], "POLICIES: expected some names"),
    ],
)
def test_names_of_nothing_are_refused_before_anything_runs(paper_table, settings, message):
    done = paper_table(*settings)
    assert done.returncode != 0 and not asked(done)
    assert message in done.stderr


def test_the_paper_asks_for_its_windows():
    paper = OmegaConf.load(REPOSITORY / "configs/eval/paper.yaml")
    settings = OmegaConf.load(REPOSITORY / "configs/eval/settings.yaml")
    assert paper.sampler == [
        "ddpm",
        *(f"asd-paper:{window}" for window in (8, 16, 20, 24, "inf")),
        "asd",
    ]
    assert (settings.first_seed, settings.seeds, settings.repeats) == (100_000, 100, 3)
    limits = {task: envs.spec(task).max_episode_steps for task in paper.task}
    assert limits == {
        "lift": 400,
        "can": 400,
        "square": 400,
        "transport": 700,
        "tool_hang": 700,
    }
