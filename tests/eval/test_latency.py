from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from foreign import FOREIGN

import asd_policy
from asd_policy.sampling import parse_sampler
from eval.errors import EvaluationError, RequestError
from eval.latency_measure import BatchTime, Measured, PlanTime, measure, time_plans
from eval.latency_problem import Problem, turns
from eval.latency_report import Report
from eval.latency_summary import Control, Distribution, check_auto, summarise, throughput
from eval.situations import Situations

pytest_plugins = ["eval_fixtures"]

SAMPLERS = ["ddpm", "asd-paper:4", "refine:4", "ddim:10"]


@pytest.fixture(scope="module")
def situations():
    rng = np.random.default_rng(0)
    previous = rng.uniform(-1, 1, (4, 16, 2)).astype(np.float32)
    previous[0] = np.nan
    history = rng.uniform(0, 512, (4, 2, 20)).astype(np.float32)
    return Situations(history, previous, np.full(4, 7), np.arange(4), previous[:, :0])


@pytest.fixture(scope="module")
def planner(checkpoint):
    torch.set_num_threads(1)
    return asd_policy.load_policy(checkpoint, device="cpu").planner


def test_every_sampler_plans_every_situation_in_turns(planner, situations):
    times = time_plans(planner, situations, [parse_sampler(name) for name in SAMPLERS])
    places = {name: [t.situation for t in times if t.sampler == name] for name in SAMPLERS}
    assert places == dict.fromkeys(SAMPLERS, [0, 1, 2, 3])  # and none of the warm-up
    firsts = [times[4 * place].sampler for place in range(4)]
    assert firsts == SAMPLERS
    assert all(t.seconds > 0 for t in times)
    assert all(t.calls == t.evaluations == 10 for t in times if t.sampler == "ddpm")
    assert turns("abc", 4) == ["b", "c", "a"] and turns([], 1) == []


def test_situations_recur_with_other_noise(planner, situations):
    problem = Problem.of(planner, situations, range(6))
    np.testing.assert_array_equal(problem.history[4:], problem.history[:2])
    assert problem.previous[0] is None and problem.previous[4] is None
    torch.testing.assert_close(problem.previous[5], torch.from_numpy(situations.previous[1]))
    assert not torch.equal(problem.noise.initial[4], problem.noise.initial[0])
    # The noise is the one that the policy itself would plan with.
    expected = situations.noise([1], planner.chain.num_steps, planner.chunk_shape)
    assert torch.equal(problem.noise.initial[1:2], expected.initial)


def test_what_is_measured_survives_its_file(checkpoint, situations, tmp_path):
    measured = measure(
        checkpoint, situations, ["ddpm", "asd"], "cpu", ["ddpm", "refine:4"], [1, 3], 2
    )
    assert measured.task == "pusht" and measured.action_horizon == 8
    names = [(b.sampler, b.environments) for b in measured.batches]
    # Two repetitions, but 96 chunks at least: 96 of one environment, 32 of three; in turns.
    assert names[:4] == [("ddpm", 1), ("refine:4", 1), ("refine:4", 1), ("ddpm", 1)]
    assert [names.count(("ddpm", n)) for n in (1, 3)] == [96, 32] and len(names) == 2 * 128
    assert set(measured.outside) == {"ddpm", "asd"}
    assert all(0 < share < 1 for share in measured.outside.values())
    assert 0 < measured.memory["process_before"] <= measured.memory["process"]
    assert measured.provenance["threads"] == "1"
    assert measured.provenance["float32_matmul_precision"] == "highest"
    assert measured.call_rows == []  # nobody asked for windows by cost
    measured.save(tmp_path / "measured.json")
    assert Measured.load(tmp_path / "measured.json") == measured
    (tmp_path / "other.json").write_text('{"plans": [{"sampler": "ddpm"}]}')
    with pytest.raises(EvaluationError, match="not a file of measured latencies"):
        Measured.load(tmp_path / "other.json")


def test_another_projects_file_is_refused_before_anything_is_measured(situations):
    with pytest.raises(RequestError, match="formats.convert"):
        measure(FOREIGN, situations, ["ddpm"], "cpu")


def test_measuring_needs_no_simulator():
    """Nor hydra, nor statistics, nor plots: a GPU machine may have none of them."""
    absent = ["gymnasium", "envs", "hydra", "omegaconf", "scipy", "statsmodels", "matplotlib"]
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in absent)
    code = f"import sys; {blocked}; import eval.latency_measure"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def _measured(milliseconds, batches=()):
    plans = [
        PlanTime(sampler, place, ms / 1e3, 10, 20)
        for sampler, times in milliseconds.items()
        for place, ms in enumerate(times)
    ]
    return Measured(
        task="pusht",
        num_steps=100,
        action_horizon=8,
        samplers=list(milliseconds),
        plans=plans[::-1],  # pairs are found by situation, wherever they stand
        outside={"ddpm": 0.1},
        memory={"process": 2, "process_before": 1},
        call_rows=[],
        call_seconds=[],
        batches=list(batches),
        provenance={},
    )


def test_figures_are_paired_by_situation():
    measured = _measured(
        {"ddpm": [100, 200, 900], "refine:4": [20, 20, 30], "ddim:10": [10, 40, 10]}
    )
    acts = {"ddpm": [0.001] * 7 + [0.101]}
    ddpm, refine, ddim = summarise(measured, acts, control_hz=10)
    assert (ddpm.chunk.p50, ddpm.chunk.max) == (pytest.approx(200), pytest.approx(900))
    # The median of 5, 10 and 30, not the ratio of the medians' 200 and 20; likewise 2, 0.5 and 3.
    assert refine.speedup.value == pytest.approx(10)
    assert 5 <= refine.speedup.low <= 10 <= refine.speedup.high < 31
    assert refine.over_reference == pytest.approx(2)
    assert asdict(ddpm.speedup) == {"value": 1, "low": 1, "high": 1} and ddim.over_reference == 1
    assert (ddpm.exact, refine.exact, ddim.exact) == (True, True, False)
    assert (ddpm.outside, refine.outside) == (0.1, None)
    assert ddpm.act.count == 8 and refine.act is None
    # 99 % of the way through eight sorted calls: 0.93 of the way from the seventh to the last.
    assert ddpm.act_hz == pytest.approx(1 / (0.001 + 0.93 * 0.1))
    assert summarise(_measured({"ddpm": [1, 2], "asd": [1, 2]}), {}, 10)[1].over_reference is None


def test_what_figures_of_a_gpu_are_not_is_said():
    measured = _measured({"ddpm": [1, 2]})
    assert "GPU" not in Report("", "", "", 10, measured).text()
    on_device = replace(measured, memory={**measured.memory, "ddpm": 3})
    assert "not the pools in which graphs compute" in Report("", "", "", 10, on_device).text()


def test_distribution():
    times = Distribution.of(np.arange(101) / 1e3)
    assert (times.count, times.mean, times.p50) == (101, pytest.approx(50), pytest.approx(50))
    assert (times.p95, times.p99, times.max) == tuple(map(pytest.approx, (95, 99, 100)))
    assert times.jitter == pytest.approx(45)
    assert times.deviation == pytest.approx(np.arange(101).std(ddof=1))


@pytest.mark.parametrize(
    ("milliseconds", "blocking", "during"),
    [
        ([90] * 100, True, True),
        ([90] * 99 + [900], True, True),  # one in a hundred may be late
        ([90] * 98 + [900] * 2, False, False),
        ([700] * 100, False, True),
    ],
)
def test_control_rates(milliseconds, blocking, during):
    seconds = np.array(milliseconds) / 1e3
    control = Control.of(seconds, action_horizon=8, hz=10)
    assert (control.fits_blocking, control.fits_async) == (blocking, during)
    assert control.blocking_hz == pytest.approx(8 / seconds.mean())
    assert control.late_blocking == np.mean(seconds > 0.1)
    assert control.late_async == np.mean(seconds > 0.8)


def test_auto_is_held_against_the_best_other():
    times = {
        ("ddpm", 1): [10.0, 10.0, 10.0],
        ("asd:8", 1): [2.0, 2.0, 8.0],
        ("asd", 1): [1.0, 1.0, 1.0],  # its windows are not fixed
        ("asd:auto", 1): [2.0, 2.1, 2.0],
        ("ddpm", 4): [8.0, 8.0, 8.0],
        ("asd:8", 4): [9.0, 9.0, 9.0],
        ("asd", 4): [1.0, 1.0, 1.0],
        ("asd:auto", 4): [8.0, 10.0, 10.0],
    }
    batches = [BatchTime(*key, seconds) for key, values in times.items() for seconds in values]
    one, four = check_auto(batches)
    assert throughput(batches)["ddpm"] == {1: pytest.approx(0.1), 4: pytest.approx(0.5)}
    assert (one.best, one.ratio, one.high, one.holds) == ("asd:8", 1.0, 4.0, True)
    assert (four.best, four.ratio, four.low, four.holds) == ("ddpm", 0.8, 0.8, False)
    assert check_auto([b for b in batches if b.sampler != "asd:auto"]) == []
    assert check_auto([b for b in batches if b.sampler.startswith("asd:auto")]) == []


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch):
    """Runs the command on a tiny policy: its exit status, and what it wrote."""

    def run(*overrides):
        arguments = [f"checkpoint={checkpoint}", f"output={tmp_path}", *overrides]
        monkeypatch.setattr(sys, "argv", ["eval.latency", *arguments])
        status = 0
        try:
            runpy.run_module("eval.latency", run_name="__main__")
        except SystemExit as exit_:
            status = exit_.code
        path = tmp_path / "results.json"
        return status, json.loads(path.read_text()) if path.exists() else None

    return run


def test_command(run, tmp_path, capsys):
    few = ["sampler=[ddpm,asd,ddim:10]", "throughput_samplers=[ddpm,asd:4]", "repetitions=1"]
    status, results = run(*few, "chunks=3", "environments=[2,1]", "act_steps=10")
    text = capsys.readouterr().out
    assert status == 0
    assert [row["sampler"] for row in results["rows"]] == ["ddpm", "asd", "ddim:10"]
    assert all(row["chunk"]["count"] == 3 for row in results["rows"])
    assert all(row["act"]["count"] == 10 for row in results["rows"])
    assert results["control_hz"] == 10 and set(results["chunks_per_second"]) == {"ddpm", "asd:4"}
    assert list(results["chunks_per_second"]["ddpm"]) == ["1", "2"]
    assert text in (tmp_path / "results.md").read_text() + "\n"
    assert "python -m eval.latency checkpoint=" in (tmp_path / "results.md").read_text()
    assert "/ ddim:10" in text and "| 2 envs |" in text
    assert (tmp_path / "latency.png").stat().st_size > 0
    assert len(Situations.load(tmp_path / "situations.safetensors")) == 3
    # What was measured elsewhere is reported here.
    (tmp_path / "measured.json").write_text(json.dumps(results["measured"]))
    status, again = run(f"measured={tmp_path}/measured.json")
    assert status == 0 and again["acts"] == {}
    assert again["measured"] == results["measured"]
    assert [row["chunk"] for row in again["rows"]] == [row["chunk"] for row in results["rows"]]
    # But not as another checkpoint's.
    results["measured"]["provenance"]["checkpoint"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(results["measured"]))
    status, _ = run(f"measured={tmp_path}/other.json")
    assert status == 2 and "got those of another checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("chunks=1", "chunks: expected a whole number of at least 2"),
        ("repetitions=0", "repetitions: expected a whole number of at least 1"),
        ("act_steps=1", "act_steps: expected 0 for none"),
        ("environments=[0,4]", "environments: expected different whole numbers"),
        ("environments=[4,4]", "environments: expected different whole numbers"),
        ("sampler=[]", "sampler: expected a name or a list of names"),
        ("sampler=[ddim,ddim:10]", "sampler: the same one is asked for twice"),
        ("throughput_samplers=[asdf]", "unknown sampler 'asdf'"),
        ("sampler=[ddpm,asd:auto]", "run `python -m eval.calibrate"),
        ("device=nonsense", "device: 'nonsense' cannot be used here"),
        ("situations=nowhere.safetensors", "nowhere.safetensors: not a file of situations"),
        ("measured=nowhere.json", "nowhere.json: not a file of measured latencies"),
        (f"checkpoint={FOREIGN}", f"asd_policy.formats.convert {FOREIGN} FOLDER"),
    ],
)
def test_bad_values_are_refused(run, override, message, capsys):
    others = {"sampler": "ddpm", "throughput_samplers": "ddpm"}
    others.pop(override.partition("=")[0], None)
    status, results = run(*(f"{key}={value}" for key, value in others.items()), override)
    assert status == 2 and results is None
    assert message in capsys.readouterr().err


def test_a_policy_without_a_simulator_is_timed_at_what_it_saw(recorded, run, capsys):
    folder, file = recorded
    arguments = [f"checkpoint={folder}", "sampler=[ddpm,refine:4]", "environments=[]",
                 "throughput_samplers=[ddpm]"]  # fmt: skip
    assert run(*arguments)[0] == 2
    assert "control_hz: task 'my_robot' is not simulated here" in capsys.readouterr().err
    assert run(*arguments, "control_hz=-1")[0] == 2
    assert run(*arguments, "control_hz=15")[0] == 2
    assert "give recorded=FILE.hdf5" in capsys.readouterr().err
    assert run(*arguments, "control_hz=15", f"recorded={file}", "chunks=50")[0] == 2
    assert "holds 49 chunks of 8 steps" in capsys.readouterr().err
    # More control steps than an episode holds: the recordings are played again.
    status, results = run(*arguments, "control_hz=15", f"recorded={file}", "chunks=3",
                          "act_steps=400")  # fmt: skip
    assert status == 0 and results["control_hz"] == 15 and results["task"] == "my_robot"
    assert [row["act"]["count"] for row in results["rows"]] == [400, 400]


def test_throughput_samplers_that_do_not_run_need_nothing(run):
    status, _ = run("sampler=ddpm", "chunks=2", "act_steps=0", "environments=[]",
                    "throughput_samplers=asd:auto")  # fmt: skip
    assert status == 0


def test_situations_of_another_policy_are_refused(run, situations, tmp_path, capsys):
    other = replace(situations, history=situations.history[:, :, :5].copy())
    other.save(tmp_path / "other.safetensors")
    status, _ = run(f"situations={tmp_path}/other.safetensors", "sampler=ddpm",
                    "throughput_samplers=ddpm")  # fmt: skip
    assert status == 2 and "is of another policy" in capsys.readouterr().err
