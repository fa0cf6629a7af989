from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace

import pytest

from eval.episodes import Episode, Failure, Outcome, PlannedChunk
from eval.errors import StoreError
from eval.provenance import DECISIVE, describe
from eval.store import Store

pytest_plugins = ["eval_fixtures"]

FIRST, SECOND = Episode("ddpm", 3, 0), Episode("refine:4", 3, 1)


def outcome(episode: Episode) -> Outcome:
    return Outcome(episode, 20, 0.1 + 0.2, False, 3, 30, 30)


def test_what_was_added_is_there_when_opened_again(tmp_path, experiment):
    path = tmp_path / "new" / "episodes.sqlite"
    with Store(path) as store:
        run = store.begin_run("command", describe("cpu"))
        store.add(run, experiment, outcome(FIRST))
        store.add(run, experiment, Failure(SECOND, "Traceback …"))
    with Store(path) as store:
        assert store.outcomes(experiment, [FIRST, SECOND]) == {FIRST: outcome(FIRST)}
        assert store.outcomes(experiment, [SECOND]) == {}
    tracebacks = sqlite3.connect(path).execute("SELECT seed, repeat, traceback FROM failures")
    assert tracebacks.fetchall() == [(3, 1, "Traceback …")]


def test_results_of_other_checkpoints_and_limits_are_kept_apart(tmp_path, experiment):
    with Store(tmp_path / "s") as store:
        store.add(store.begin_run("", describe("cpu")), experiment, outcome(FIRST))
        for other in (
            replace(experiment, fingerprints={"ddpm": "another"}),
            replace(experiment, max_steps=300),
            replace(experiment, task="lift"),
        ):
            assert store.outcomes(other, [FIRST]) == {}


def test_a_change_of_what_one_sampler_depends_on_keeps_the_others(tmp_path, experiment):
    now = describe("cpu")
    timed = [PlannedChunk(e.sampler, 3, 0, 0.1, 10, 10) for e in (FIRST, SECOND)]
    with Store(tmp_path / "s") as store:
        run = store.begin_run("", {**now, "torch": "2.6.0"})
        store.add(run, experiment, outcome(FIRST))
        store.add(run, experiment, outcome(SECOND))
        store.add_planning(store.begin_run("", now), experiment, timed)
        both = ["ddpm", "refine:4"]
        other = replace(experiment, fingerprints={**experiment.fingerprints, "refine:4": "another"})
        assert store.outcomes(other, [FIRST, SECOND]) == {FIRST: outcome(FIRST)}
        store.check_versions(other, [SECOND], now)  # nothing of it is used
        assert store.commits(other, [SECOND]) == []
        assert store.planning(experiment, both, 1, now) == timed
        assert store.planning(other, both, 1, now) == []
        assert store.planning(other, ["ddpm"], 1, {**now, "gpu": "another"}) == []
        assert store.planning(other, ["ddpm"], 1, now) == timed[:1]


def test_two_connections_add_to_one_file(tmp_path, experiment):
    with Store(tmp_path / "s") as first, Store(tmp_path / "s") as second:
        run = first.begin_run("", describe("cpu"))
        first.add(run, experiment, outcome(FIRST))
        second.add(run, experiment, outcome(SECOND))
        assert len(first.outcomes(experiment, [FIRST, SECOND])) == 2


def held(path) -> sqlite3.Connection:
    """A new file that another process is about to write to, before it is a store."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE held (x)")
    other.execute("BEGIN IMMEDIATE")
    return other


def test_processes_that_open_a_new_file_together_wait_for_each_other(tmp_path):
    other = held(tmp_path / "s")
    release = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    release.start()
    with Store(tmp_path / "s") as store:
        assert store.begin_run("", describe("cpu")) == 1
    release.join()
    other.close()


def test_a_file_that_another_process_keeps_is_not_called_something_else(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.store._PATIENCE_S", 0.1)
    other = held(tmp_path / "s")
    with pytest.raises(StoreError, match=r"another process holds the file; wait"):
        Store(tmp_path / "s")
    other.close()


def test_results_of_other_versions_are_not_mixed(tmp_path, experiment):
    now = describe("cpu")
    assert set(DECISIVE) <= set(now)
    with Store(tmp_path / "s") as store:
        run = store.begin_run("", {**now, "torch": "2.6.0", "cpu": "another", "python": "3.10.0"})
        store.add(run, experiment, outcome(FIRST))
        with pytest.raises(StoreError, match="choose another output=") as error:
            store.check_versions(experiment, [FIRST, SECOND], now)
        assert f"torch 2.6.0 (not {now['torch']})" in str(error.value)
        assert "python" not in str(error.value)
        store.check_versions(experiment, [SECOND], now)  # the other one is not used


def test_commits_are_those_at_which_the_episodes_ran(tmp_path, experiment):
    now = describe("cpu")
    with Store(tmp_path / "s") as store:
        for commit, episode in (("b2", SECOND), ("a1", FIRST), ("unused", Episode("ddpm", 4, 0))):
            run = store.begin_run("", {**now, "commit": commit, "cpu": f"of {commit}"})
            store.add(run, experiment, outcome(episode))
        store.begin_run("report_only=true", {**now, "commit": "c3"})
        assert store.commits(experiment, [FIRST, SECOND]) == ["b2", "a1"]
        machines = store.machines(experiment, [FIRST, SECOND])
        assert [machine.partition(", gpu none")[0] for machine in machines] == [
            "cpu of b2", "cpu of a1"
        ]  # fmt: skip


def test_versions_name_what_matters():
    now = describe("cpu")
    assert now["torch"].startswith("2.") and now["gym-pusht"] != "none" and now["cpu"]


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "episodes.sqlite"
    path.write_text("these are my notes, not a data base; " * 50)
    with pytest.raises(StoreError, match="move the file away"):
        Store(path)
    assert path.read_text().startswith("these are my notes")


def test_results_of_a_later_version_are_refused(tmp_path):
    path = tmp_path / "episodes.sqlite"
    with Store(path):
        pass
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="got version 99"):
        Store(path)


def test_planning_times_are_reused_on_the_same_machine_only(tmp_path, experiment):
    here, there = describe("cpu"), {**describe("cpu"), "cpu": "another"}
    chunks = [PlannedChunk(s, 3, c, 0.1, 10, 10) for c in (0, 1) for s in ("ddpm", "refine:4")]
    with Store(tmp_path / "s") as store:
        store.add_planning(store.begin_run("", there), experiment, chunks)
        assert store.planning(experiment, ["ddpm", "refine:4"], 2, here) == []
        store.add_planning(store.begin_run("", here), experiment, chunks)
        assert store.planning(experiment, ["ddpm", "refine:4"], 2, here) == chunks
        assert store.planning(experiment, ["refine:4"], 2, here) == chunks[1::2]
        assert store.planning(experiment, ["ddpm", "refine:4"], 3, here) == []
        assert store.planning(experiment, ["ddpm", "carry:4"], 2, here) == []
