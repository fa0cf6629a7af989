"""What calls cost: measured once, kept, and never trusted when damaged."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

import asd_policy
from asd_policy.policies.costs import measure, measured_costs
from asd_policy.runtime.graphs import GraphRunner

CPU = torch.device("cpu")


def told(calls):
    """Prepares calls that are written down."""
    return lambda rows: lambda: calls.append(rows)


def five():
    """Rounds that take a millisecond each."""
    time.sleep(0.005)
    return 5


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "asd_policy"


def test_is_measured_once(cache):
    calls = []
    first = measured_costs(told(calls), five, {"name": "a"}, CPU)
    assert calls[0] == 1 and max(calls) == 256
    count = len(calls)
    assert measured_costs(told(calls), five, {"name": "a"}, CPU) == first
    assert len(calls) == count
    measured_costs(told(calls), five, {"name": "b"}, CPU)
    assert len(calls) > count
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"rows": [2, 1], "seconds": [1, 1]}'])
def test_a_damaged_table_is_measured_again(cache, content):
    table = measured_costs(told([]), five, {}, CPU)
    path = next(cache.iterdir())
    path.write_text(content)
    assert measured_costs(told([]), five, {}, CPU).rows == table.rows
    assert path.read_text() != content


def test_a_slow_network_is_not_measured_to_the_end():
    table = measure(lambda rows: partial(time.sleep, 0.3 * rows), five, CPU)
    assert table.rows == (1, 2, 4)
    assert 0.001 <= table.round_seconds < 0.01


def test_a_policy_measures_its_own_network(cache, tiny_folder):
    planner = asd_policy.load_policy(tiny_folder, device="cpu").planner
    assert planner.costs() is planner.costs()
    assert planner.costs().rows[0] == 1
    assert 0 < planner.costs().round_seconds < 0.1


def test_another_precision_is_another_table(cache, tiny_folder):
    for precision in ("default", "bfloat16"):
        asd_policy.load_policy(tiny_folder, device="cpu", precision=precision).planner.costs()
    assert len(list(cache.iterdir())) == 2


def test_rounds_are_timed_as_they_are_run(cache, tiny_folder):
    captured = []

    def capture(function):
        captured.append(function)
        return function

    planner = asd_policy.load_policy(tiny_folder, device="cpu").planner
    planner._run = GraphRunner(capture)
    assert planner.costs().round_seconds > 0
    # The beginning of a chunk and the widths of rounds, and calls of each number of rows.
    assert len(captured) == 5 + len(planner.costs().rows)
