from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from planted import Fault, planted

import asd_policy
from eval.episodes import Episode, Experiment, Failure, Outcome
from eval.evaluation import run_missing
from eval.provenance import describe
from eval.request import Request
from eval.rollout import RollingBatch
from eval.store import Store
from eval.workers import Job, LostWorker, run_episodes

pytest_plugins = ["eval_fixtures"]

EPISODES = [Episode(s, seed, 0) for s in ("ddpm", "refine:4") for seed in range(100, 105)]
BAD = 102


@pytest.fixture
def expected(experiment: Experiment) -> dict[Episode, Outcome]:
    """The outcomes of the good seeds, run one after the other in this process."""
    policy = asd_policy.load_policy(experiment.checkpoint, device="cpu")
    batch = RollingBatch(policy, planted(-1, "kill"), experiment.max_steps)
    good = [episode for episode in EPISODES if episode.seed != BAD]
    results = [result for episode in good for result in batch.run([episode], lambda count: [])]
    return {result.episode: result for result in results if isinstance(result, Outcome)}


def run_planted(
    fault: Fault, experiment: Experiment, store: Store, workers: int, places: int
) -> tuple[list[Outcome | Failure], list[LostWorker]]:
    run = store.begin_run("", describe("cpu"))
    job = Job(experiment, planted(BAD, fault), store.path, run, places)
    results: list[Outcome | Failure] = []
    lost = run_episodes(job, EPISODES, workers, results.append)
    return results, lost


def test_an_exception_fails_its_episodes_and_the_others_are_kept(tmp_path, experiment, expected):
    with Store(tmp_path / "s") as store:
        results, lost = run_planted("raise at step", experiment, store, workers=2, places=2)
        assert store.outcomes(experiment, EPISODES) == expected
    assert lost == []
    failures = [result for result in results if isinstance(result, Failure)]
    assert {failure.episode for failure in failures} == set(EPISODES) - set(expected)
    assert all("planted at step 10" in failure.traceback for failure in failures)
    kept = sqlite3.connect(tmp_path / "s").execute("SELECT seed, traceback FROM failures")
    assert [(seed, "planted" in text) for seed, text in kept] == [(BAD, True)] * 2


def test_a_killed_worker_is_named_with_its_seeds_and_the_others_go_on(
    tmp_path, experiment, expected
):
    with Store(tmp_path / "s") as store:
        # One at a time: a killed worker takes nothing but the bad seed with it.
        results, lost = run_planted("kill", experiment, store, workers=3, places=1)
        assert store.outcomes(experiment, EPISODES) == expected
    assert {result.episode for result in results} == set(expected)
    assert {episode for loss in lost for episode in loss.held} == set(EPISODES) - set(expected)
    for loss in lost:
        assert "killed by SIGKILL" in str(loss) and f"seed {BAD}" in str(loss)


def test_a_worker_that_cannot_start_says_why(tmp_path, experiment):
    with Store(tmp_path / "s") as store:
        broken = Experiment(
            "pusht", Path("/nowhere"), {"action_mode": "position"}, {}, 10, 20, "cpu"
        )
        run = store.begin_run("", describe("cpu"))
        job = Job(broken, planted(BAD, "kill"), store.path, run, 1)
        (loss,) = run_episodes(job, EPISODES, 1, lambda result: None)
    assert loss.exit_code == 1 and loss.held == ()
    assert "CheckpointError" in str(loss)


def test_a_checkpoint_that_has_changed_is_not_evaluated(tmp_path, experiment):
    """Its results would be kept as those of the one that was asked for."""
    fingerprints = {**experiment.fingerprints, "refine:4": "as it was"}
    changed = replace(experiment, fingerprints=fingerprints)
    with Store(tmp_path / "s") as store:
        run = store.begin_run("", describe("cpu"))
        job = Job(changed, planted(BAD, "kill"), store.path, run, 1)
        (loss,) = run_episodes(job, EPISODES[:1], 1, lambda result: None)
        assert store.outcomes(changed, EPISODES) == {}
    assert "expected the checkpoint that this evaluation began with (as it was" in str(loss)


def test_the_user_sees_tracebacks_seeds_and_what_is_missing(tmp_path, experiment, capsys):
    request = Request(
        experiments=(experiment,),
        samplers=("ddpm",),
        seeds=range(100, 104),
        repeats=1,
        workers=1,
        places={"pusht": 4},
        videos=0,
        planning_chunks=0,
        output=tmp_path,
    )
    with Store(request.store) as store:
        run = store.begin_run("", describe("cpu"))
        arguments = (request, experiment, store, run)
        assert not run_missing(*arguments, planted(BAD, "raise at step"))
        output = "".join(capsys.readouterr())
        assert f"seed {BAD}, repeat 0, sampler ddpm failed:\nTraceback" in output
        assert "RuntimeError: planted at step 10" in output
        assert "1 of 4 episodes have no result" in output
        # Tried again, without the fault.
        assert run_missing(*arguments, planted(-1, "raise at step"))
        assert len(store.outcomes(experiment, request.episodes)) == 4
