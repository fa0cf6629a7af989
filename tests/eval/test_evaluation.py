"""Whole evaluations in this process, of results that are planted in the store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from asd_policy.formats import fingerprint
from eval.episodes import Episode, Experiment, Failure, Outcome
from eval.errors import RequestError, StoreError
from eval.evaluation import evaluate
from eval.provenance import describe
from eval.request import Request
from eval.store import Store

pytest_plugins = ["eval_fixtures"]


@pytest.fixture
def request_(experiment: Experiment, tmp_path: Path) -> Request:
    """A report on three seeds with two samplers."""
    return Request(
        experiments=(experiment,),
        samplers=("ddpm", "refine:4"),
        seeds=range(3),
        repeats=1,
        workers=1,
        places={"pusht": 3},
        videos=0,
        planning_chunks=0,
        output=tmp_path,
        report_only=True,
    )


def keep(
    request: Request,
    episodes: Iterable[Episode],
    failed: Iterable[Episode] = (),
    **provenance: str,
) -> None:
    """Store episodes that ended, and some that failed."""
    (experiment,) = request.experiments
    with Store(request.store) as store:
        run = store.begin_run("", {**describe("cpu"), **provenance})
        for episode in episodes:
            store.add(run, experiment, Outcome(episode, 20, 0.5, False, 3, 30, 30))
        for episode in failed:
            store.add(run, experiment, Failure(episode, "Traceback …"))


def test_a_report_says_what_is_missing_and_what_failed(request_, tmp_path, capsys):
    ddpm, refine = request_.episodes[:3], request_.episodes[3:]
    # One that failed first and ran later is not missing.
    keep(request_, ddpm[:2], failed=[ddpm[0], ddpm[2]])
    assert not evaluate(request_, "")
    line = "Missing: pusht ddpm 1 of 3 (1 failed); pusht refine:4 3 of 3 (0 failed). "
    assert line in capsys.readouterr().out and line in (tmp_path / "results.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["missing"][0] == {
        "task": "pusht", "sampler": "ddpm", "episodes": 1, "asked": 3, "failed": 1,
    }  # fmt: skip
    keep(request_, [ddpm[2], *refine])
    assert evaluate(request_, "")
    assert "Missing" not in capsys.readouterr().out + (tmp_path / "results.md").read_text()


def test_the_baseline_is_the_first_sampler_even_without_episodes(request_, capsys):
    keep(request_, request_.episodes[3:])
    evaluate(request_, "")
    assert "minus ddpm [95 %]" in capsys.readouterr().out


def test_a_report_after_an_upgrade_is_of_what_is_stored(request_, tmp_path, capsys):
    keep(request_, request_.episodes, torch="2.6.0", cpu="another")
    before = request_.store.read_bytes()
    assert evaluate(request_, "")
    text = (tmp_path / "results.md").read_text()
    assert "torch 2.6.0" in text and "cpu another" in text
    assert request_.store.read_bytes() == before  # a report leaves no trace
    keep(request_, request_.episodes[:1])
    with pytest.raises(StoreError, match="torch 2.6.0"):
        evaluate(request_, "")


def test_a_report_makes_no_store(request_, tmp_path):
    with pytest.raises(StoreError, match="found none"):
        evaluate(replace(request_, output=tmp_path / "mistyped"), "")
    assert not (tmp_path / "mistyped").exists()
    keep(request_, [])
    with pytest.raises(StoreError, match="expected stored episodes to report"):
        evaluate(request_, "")


def test_a_report_is_written_where_timing_or_filming_fails(request_, experiment, tmp_path, capsys):
    keep(request_, request_.episodes)
    broken = replace(experiment, env_options={"action_mode": "nonsense"})
    request = replace(request_, experiments=(broken,), report_only=False)
    assert not evaluate(replace(request, planning_chunks=1), "")
    assert "planning was not timed" in (tmp_path / "results.md").read_text()
    assert "nonsense" in "".join(capsys.readouterr())
    assert not evaluate(replace(request, videos=1), "")
    output, errors = capsys.readouterr()
    assert "| refine:4 " in output and "filming seed 0, repeat 0, sampler refine:4 failed" in errors
    assert evaluate(request, "")


@pytest.mark.parametrize("sampler", ["asd:auto", "speculative-independent:4", "ddim:11"])
def test_a_sampler_that_cannot_run_is_refused_before_any_episode(request_, experiment, sampler):
    fingerprints = {**experiment.fingerprints, sampler: fingerprint(experiment.checkpoint)}
    request = replace(
        request_,
        experiments=(replace(experiment, fingerprints=fingerprints),),
        samplers=("ddpm", sampler),
        report_only=False,
    )
    with pytest.raises(RequestError, match=f"sampler: {sampler} cannot run on this pusht policy"):
        evaluate(request, "")
    with Store(request.store) as store:
        assert store.outcomes(request.experiments[0], request.episodes) == {}
