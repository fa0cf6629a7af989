"""The command as a user runs it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.episodes import Episode, Outcome

pytest_plugins = ["eval_fixtures"]

REPOSITORY = Path(__file__).resolve().parents[2]
COLUMNS = "sampler, seed, repeat, steps, reward, success, chunks, calls, evaluations"


def start(*overrides: str) -> subprocess.Popen[str]:
    """The command, in a process group of its own, as under a terminal.

    A shell starts what runs in the background deaf to Ctrl-C, and children inherit that.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "eval.success", *overrides],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def overrides(checkpoint: Path, output: Path) -> list[str]:
    return [
        "task=pusht",
        f"checkpoint={checkpoint}",
        "sampler=[ddpm,refine:4]",
        "seeds=4",
        "repeats=2",
        "max_steps=120",
        "workers=1",
        "episodes_per_worker=2",
        "planning_chunks=0",
        "videos=0",
        f"output={output}",
    ]


def rows(output: Path) -> dict[Episode, tuple[Outcome, int]]:
    """What is stored, and the run that stored it."""
    path = output / "episodes.sqlite"
    if not path.exists():
        return {}
    try:
        found = sqlite3.connect(path).execute(f"SELECT {COLUMNS}, run FROM episodes").fetchall()
    except sqlite3.OperationalError:  # the tables are not there yet
        return {}
    outcomes = {}
    for sampler, seed, repeat, *values, run in found:
        episode = Episode(sampler, seed, repeat)
        outcomes[episode] = (Outcome(episode, *values), run)
    return outcomes


def wait_for_episodes(process: subprocess.Popen[str], output: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(rows(output)) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    return output


@pytest.fixture(scope="module")
def uninterrupted(checkpoint, tmp_path_factory) -> dict[Episode, Outcome]:
    """All outcomes of an undisturbed run, by other workers and another batch size."""
    output = tmp_path_factory.mktemp("uninterrupted")
    arguments = [*overrides(checkpoint, output), "workers=2", "episodes_per_worker=8"]
    text = finish(start(*arguments, "planning_chunks=4"))
    for name in ("results.md", "results.json", "pusht.png"):
        assert (output / name).stat().st_size > 0
    assert "| refine:4 |" in text and "time speedup" in text
    assert not (REPOSITORY / "success.log").exists()
    return {episode: outcome for episode, (outcome, _) in rows(output).items()}


def test_a_run_covers_all_seeds_repeats_and_samplers(uninterrupted):
    assert set(uninterrupted) == {
        Episode(sampler, seed, repeat)
        for sampler in ("ddpm", "refine:4")
        for seed in range(100_000, 100_004)
        for repeat in (0, 1)
    }


def test_a_killed_run_goes_on_where_it_was(checkpoint, tmp_path, uninterrupted):
    arguments = overrides(checkpoint, tmp_path)
    process = start(*arguments)
    wait_for_episodes(process, tmp_path, 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    first = rows(tmp_path)
    assert 3 <= len(first) < 16
    text = finish(start(*arguments, "report_only=true"), status=1)
    assert "| ddpm " in text and "Missing: pusht" in text and rows(tmp_path) == first
    finish(start(*arguments))
    second = rows(tmp_path)
    # Nothing is lost or done again, and the results are those of a run that was never killed.
    assert {episode: second[episode] for episode in first} == first
    assert {run for episode, (_, run) in second.items() if episode not in first} == {2}
    assert {episode: outcome for episode, (outcome, _) in second.items()} == uninterrupted
    # All there is to film and to time is there now: a report does neither.
    text = finish(start(*arguments, "report_only=true", "planning_chunks=4", "videos=1"))
    assert "| refine:4 " in text and rows(tmp_path) == second
    assert "pusht planning" not in text and not list(tmp_path.glob("*.mp4"))


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(checkpoint, tmp_path, uninterrupted):
    process = start(*overrides(checkpoint, tmp_path))
    wait_for_episodes(process, tmp_path, 1)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in text and "Traceback" not in text
    stored = {episode: outcome for episode, (outcome, _) in rows(tmp_path).items()}
    assert stored and stored.items() <= uninterrupted.items()


def test_nothing_to_report_is_said(checkpoint, tmp_path):
    process = start(*overrides(checkpoint, tmp_path), "report_only=true")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "expected a file of results to report" in text and "Traceback" not in text


def test_a_wrong_request_is_one_clear_line(checkpoint, tmp_path):
    process = start(*overrides(checkpoint, tmp_path), "sampler=[ddpm,magic]")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert text.startswith("error: unknown sampler 'magic'") and "Traceback" not in text
