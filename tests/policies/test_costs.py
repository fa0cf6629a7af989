"""What calls cost: measured once, kept, and never trusted when damaged."""

from __future__ import annotations

import time

import pytest
import torch

import asd_policy
from asd_policy.policies.costs import measure, measured_costs

CPU = torch.device("cpu")


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
    first = measured_costs(calls.append, five, {"name": "a"}, (2,), CPU)
    assert calls[0] == 1 and max(calls) == 256
    count = len(calls)
    assert measured_costs(calls.append, five, {"name": "a"}, (2,), CPU) == first
    assert len(calls) == count
    measured_costs(calls.append, five, {"name": "b"}, (2,), CPU)
    assert len(calls) > count
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"rows": [2, 1], "seconds": [1, 1]}'])
def test_a_damaged_table_is_measured_again(cache, content):
    table = measured_costs(lambda rows: None, five, {}, (2,), CPU)
    path = next(cache.iterdir())
    path.write_text(content)
    assert measured_costs(lambda rows: None, five, {}, (2,), CPU).rows == table.rows
    assert path.read_text() != content


def test_a_slow_network_is_not_measured_to_the_end():
    table = measure(lambda rows: time.sleep(0.3 * rows), five, CPU)
    assert table.rows == (1, 2, 4)
    assert 0.001 <= table.round_seconds < 0.01


def test_a_policy_measures_its_own_network(cache, tiny_folder):
    planner = asd_policy.load_policy(tiny_folder, device="cpu").planner
    assert planner.costs() is planner.costs()
    assert planner.costs().rows[0] == 1
    assert 0 < planner.costs().round_seconds < 0.1
