"""The command as a user runs it, but in this process, so that an error can be planted in it."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from foreign import FOREIGN

from asd_policy.formats import load_checkpoint, save_checkpoint
from asd_policy.sampling import Parametrization, speculative
from asd_policy.sampling.coupling import Coupled
from eval import exactness_draws
from eval.power import detectable
from eval.two_sample import KINDS, compare, same_distribution

pytest_plugins = ["eval_fixtures"]


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch):
    """Runs the command on a tiny policy: its exit status, and what it wrote."""

    def run(*overrides):
        arguments = [f"checkpoint={checkpoint}", "observations=2", "samples=300"]
        arguments += [f"output={tmp_path}", *overrides]
        monkeypatch.setattr(sys, "argv", ["eval.exactness", *arguments])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_module("eval.exactness", run_name="__main__")
        path = tmp_path / "results.json"
        return exit_.value.code, json.loads(path.read_text()) if path.exists() else None

    return run


def test_exact_samplers_pass_and_ddim_differs(run, tmp_path, capsys):
    status, results = run("sampler=[asd,asd-paper:4,refine:4,ddim:3]")
    text = capsys.readouterr().out
    verdicts = {row["sampler"]: row["verdict"] for row in results["samplers"]}
    exact = ["ddpm (again)", "asd", "asd-paper:4", "refine:4"]
    assert status == 0 and results["passed"] is True
    assert verdicts == {**dict.fromkeys(exact, "passes"), "ddim:3": "differs"}
    assert "| ddim:3       | differs " in text and "drafted without it" in text
    # The samples are independent of each other: nobody draws the reference's own chunks.
    assert all(test["difference"]["ks"] > 0 for row in results["samplers"] for test in row["tests"])
    # From two episodes, and after other chunks of theirs, whose warm starts are used.
    places = [(place["seed"], place["chunk"]) for place in results["observations"]]
    assert len({seed for seed, _ in places}) == 2 and min(chunk for _, chunk in places) > 0
    assert all(place["detectable"]["shift"] < 1 for place in results["observations"])
    assert (tmp_path / "distributions.png").stat().st_size > 0
    assert "checkpoint=" in (tmp_path / "results.md").read_text()


def test_a_planted_error_fails(run, monkeypatch, capsys):
    """Where a draft is rejected, keep its noise instead of reflecting it.

    From a cold start this tiny policy's drafts are so bad that rejecting them is always right: it
    is the warm start that brings the error to light.
    """
    honest = speculative.reflection_coupling
    monkeypatch.setattr(
        speculative,
        "reflection_coupling",
        lambda d, z, u: Coupled(honest(d, z, u).accepted, z),
    )
    status, results = run("sampler=[asd,asd-paper:4]")
    verdicts = {row["sampler"]: row["verdict"] for row in results["samplers"]}
    assert status == 1 and results["passed"] is False
    assert verdicts["ddpm (again)"] == "passes" and verdicts["asd"] == "FAILS"
    assert "NOT EXACT, although it should be: asd." in capsys.readouterr().out


def test_a_broken_control_overrules_everything(run, monkeypatch, capsys):
    honest = exactness_draws.draw

    def planted(planner, situations, sampler, samples, stream, progress):
        drawn = honest(planner, situations, sampler, samples, stream, progress)
        if stream == 1:
            drawn.chunks[:] *= 1.5
        return drawn

    monkeypatch.setattr(exactness_draws, "draw", planted)
    status, _ = run("sampler=[refine:4]")
    assert status == 1
    assert "no other verdict counts" in capsys.readouterr().out


def test_a_respaced_chain_says_so(run, capsys):
    status, results = run("sampler=[asd]", "num_steps=5", "observations=1")
    assert status == 0 and results["num_steps"] == 5
    assert "respaced from 10 to 5 steps" in capsys.readouterr().out
    assert results["reference"]["calls"] == 5


def test_a_policy_without_a_simulator_is_tested_at_what_it_saw(recorded, run, capsys):
    folder, file = recorded
    arguments = [f"checkpoint={folder}", "samples=100", "sampler=[refine:4]"]
    assert run(*arguments)[0] == 2
    assert "no simulator of task 'my_robot'" in capsys.readouterr().err
    with h5py.File(file, "a") as opened:
        for key, values in opened["data/demo_0/obs"].items():
            opened[f"data/short/obs/{key}"] = values[:4]  # plans but once
    assert run(*arguments, f"recorded={file}", "observations=7")[0] == 2
    assert "only 6 episodes plan more than once" in capsys.readouterr().err
    status, results = run(*arguments, f"recorded={file}", "observations=2")
    assert status == 0 and len({place["seed"] for place in results["observations"]}) == 2


def test_an_edm_chain_is_respaced_too(checkpoint, run, tmp_path):
    loaded = load_checkpoint(checkpoint)
    chain = {"name": "edm_ancestral", "num_steps": 10, "grid": "exponential",
             "sigma_min": 0.005, "sigma_max": 10.0}  # fmt: skip
    parametrization = Parametrization("edm", sigma_data=0.5)
    spec = replace(loaded.spec, chain=chain, parametrization=parametrization)
    save_checkpoint(replace(loaded, spec=spec), tmp_path / "edm")
    arguments = [f"checkpoint={tmp_path}/edm", "num_steps=5", "observations=1", "samples=100"]
    status, results = run(*arguments, "sampler=[refine:4]")
    assert status == 0 and results["num_steps"] == results["reference"]["calls"] == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler=[ddpm,asd]", "sampler: ddpm is what the others are compared with"),
        ("sampler=[refine:4,refine:4]", "asked for twice"),
        ("sampler=[]", "expected a name or a list"),
        ("sampler=magic", "unknown sampler 'magic'"),
        ("sampler=asd:auto", "eval.calibrate"),
        ("sampler=ddim:11", "num_steps"),
        ("samples=99", "samples: expected a whole number"),
        ("observations=0", "observations: expected a whole number"),
        ("num_steps=11", "the checkpoint's chain has 10 steps"),
        ("significance=0.5", "significance: expected a number"),
        ("significance=often", "significance: expected a number"),
        ("device=abacus", "device: 'abacus' cannot be used"),
        ("checkpoint=nowhere", "missing"),
        (f"checkpoint={FOREIGN}", f"asd_policy.formats.convert {FOREIGN} FOLDER"),
    ],
)
def test_a_wrong_request_is_one_clear_line(run, override, message, capsys):
    status, results = run(override)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and results is None
    assert error.startswith("error: ") and message in error


def normal(n, seed, size=5):
    return np.random.default_rng(seed).standard_normal((n, size)) * np.linspace(2, 1, size)


def test_each_kind_of_difference_is_seen_by_its_test():
    x, y = normal(800, 0), normal(800, 1)
    shifted, wider = compare(x, y + 0.4), compare(x, 1.4 * y)
    assert compare(x, y).p_value > 0.05
    assert shifted.mean < 1e-6 and shifted.spread > 1e-3 and shifted.ks["principal 5"] < 1e-6
    assert wider.spread < 1e-6 and wider.mean > 1e-3 and wider.ks["radius"] < 1e-6
    assert shifted.energy == wider.energy == 1 / 2000
    assert shifted.difference.mean_shift == pytest.approx(0.4, abs=0.15)
    assert wider.difference.variance_ratio == pytest.approx(1.96, rel=0.1)
    assert wider.difference.energy < 0.1 < wider.difference.ks


def test_the_p_value_is_corrected_for_all_tests():
    result = compare(normal(300, 0), normal(300, 1) + 0.15)
    assert list(result.p_values) == list(KINDS)
    # Six random directions, the five principal ones that there are, and the radius.
    assert result.p_values["ks"] == pytest.approx(min(1, 12 * min(result.ks.values())))
    assert result.p_value == min(1, 4 * min(result.p_values.values()))
    assert same_distribution(normal(300, 0), normal(300, 1) + 0.15) == result.p_value


def test_false_alarms_are_rare():
    p_values = [
        compare(np.clip(normal(150, 2 * i), -1, 1), np.clip(normal(150, 2 * i + 1), -1, 1)).p_value
        for i in range(100)
    ]
    assert np.mean(np.array(p_values) < 0.1) < 0.2


def test_constants_are_no_difference():
    x, y = normal(200, 0), normal(200, 1)
    x[:, 2] = y[:, 2] = 1.0
    assert compare(x, y).p_value > 0.05
    y[:, 2] = 1.5
    assert compare(x, y).p_value < 1e-6
    assert compare(np.ones((100, 3)), np.ones((100, 3))).p_value == 1


@pytest.mark.parametrize("kind", ["shift", "spread"])
def test_the_power_is_what_it_says(kind):
    size, significance = 250, 1e-3
    power = detectable(normal(2 * size, 7), size, significance)

    def seen(effect):
        """How often a whole comparison of fresh samples sees it."""
        change = np.zeros(5)
        change[0] = 2 * effect if kind == "shift" else 0  # 2 is that direction's deviation
        factor = 1 if kind == "shift" else 1 + effect
        p_values = [
            compare(normal(size, 100 + i), factor * normal(size, 500 + i) + change).p_value
            for i in range(60)
        ]
        return np.mean(np.array(p_values) < significance)

    effect = getattr(power, kind)
    assert 0.65 <= seen(effect) <= 1
    assert seen(0.5 * effect) < 0.5


def test_a_constant_has_no_spread_to_see():
    assert detectable(np.ones((300, 3)), 150, 1e-3).spread == np.inf
