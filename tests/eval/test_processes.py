from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from eval.processes import run_apart

PARENT = """
from tests.eval.test_processes import say_and_sleep
from eval.processes import run_apart
if __name__ == "__main__":
    run_apart(say_and_sleep)
"""


def say_and_sleep() -> None:
    print(os.getpid(), flush=True)
    time.sleep(60)


def divide(a: float, b: float) -> float:
    return a / b


def test_results_and_exceptions_come_back():
    assert run_apart(divide, 1, b=4) == 0.25
    with pytest.raises(ZeroDivisionError):
        run_apart(divide, 1, 0)


def test_a_killed_parent_leaves_no_process_behind():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    try:
        # The pipe closes when the last process that can write to it has ended.
        parent.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the process went on without its parent")
