from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from eval import plots, report
from eval.episodes import Episode, Outcome, PlannedChunk
from eval.planning_time import Latency
from eval.summary import Row, summarize

pytest_plugins = ["eval_fixtures"]


def outcomes(sampler: str, rewards: list[float], calls: int) -> list[Outcome]:
    return [
        Outcome(Episode(sampler, seed, 0), 16, reward, reward > 0.95, 2, 2 * calls, 30)
        for seed, reward in enumerate(rewards)
    ]


@pytest.fixture
def rows(experiment) -> list[Row]:
    ended = outcomes("ddpm", [0.5, 1.0, 0.9], 10) + outcomes("refine:4", [0.6, 1.0, 0.8], 4)
    latency = {"ddpm": Latency(100, 120, 1), "refine:4": Latency(20, 33.3, 4.9)}
    return summarize(experiment, "reward", ["ddpm", "refine:4", "carry:4"], ended, latency)


def test_rows_hold_means_over_chunks_and_pairs(rows):
    ddpm, refine = rows  # carry:4 has no episodes
    assert ddpm.difference is None and ddpm.sign_test is None
    assert ddpm.score.value == pytest.approx(0.8)
    assert refine.difference is not None
    assert refine.difference.value == pytest.approx(0.0)
    assert refine.calls_per_chunk == 4 and refine.evaluations_per_chunk == 15
    assert (ddpm.algorithmic_speedup, refine.algorithmic_speedup) == (1, 2.5)


def test_success_is_scored_for_tasks_that_count_it(experiment):
    (row,) = summarize(experiment, "success", ["ddpm"], outcomes("ddpm", [0.5, 1.0], 10), {})
    assert row.score.value == 0.5


def test_table_lines_up_and_says_what_a_user_asks(rows):
    lines = report.table(rows, "ddpm").splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "task",
        "sampler",
        "metric",
        "mean [95 %]",
        "minus ddpm [95 %]",
        "calls/chunk",
        "evals/chunk",
        "speedup",
        "ms p50",
        "ms p95",
        "time speedup",
    ]
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[:3] == ["pusht", "refine:4", "max. reward"]
    assert cells[3].startswith("0.800 [0.")
    assert cells[4].startswith(("+0.000 [-", "-0.000 [-"))
    assert cells[5:] == ["4.0", "15", "2.5x", "20", "33", "4.9x"]


def test_table_without_times_leaves_them_open(rows):
    line = report.table([replace(rows[0], latency=None)], "ddpm").splitlines()[2]
    assert [cell.strip() for cell in line.strip("|").split("|")][-3:] == ["", "", ""]


def test_report_files_hold_command_table_and_versions(tmp_path, rows):
    made_with = {"torch": "2.9", "cpu": "of the report", "commit": "c3"}
    ran_at = {"pusht": ["a1", "b2"]}
    ran_on = {"pusht": ["cpu x", "cpu y"], "lift": ["cpu x"]}
    command = "python -m eval.success x"
    report.Report(command, "ddpm", rows, [], [], {"pusht": 10}, made_with, ran_at, ran_on).write(
        tmp_path
    )
    text = (tmp_path / "results.md").read_text()
    assert command in text and report.table(rows, "ddpm") in text
    assert "ran on: pusht, lift: cpu x; pusht: cpu y." in text and "of the report" not in text
    assert "torch 2.9" in text and "(pusht 10)" in text
    content = json.loads((tmp_path / "results.json").read_text())
    assert "ran at commit: pusht a1, b2. Reported at: c3." in text
    assert content["provenance"] == made_with and content["commits"] == ran_at
    assert content["rows"][1]["score"]["value"] == pytest.approx(0.8)
    assert content["rows"][1]["latency"]["p95"] == 33.3


def test_plot_is_drawn_with_and_without_times(tmp_path, rows):
    chunks = [PlannedChunk(r.sampler, 0, c, 0.1 * (c + 1), 1, 1) for r in rows for c in range(3)]
    plots.plot(tmp_path / "with.png", "Push-T", rows, chunks)
    plots.plot(tmp_path / "without.png", "Push-T", rows, [])
    three, two = (Image.open(tmp_path / name) for name in ("with.png", "without.png"))
    assert three.width == pytest.approx(1.5 * two.width)
