"""Processes of one thread each, started afresh: forking breaks torch and rendering contexts."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SPAWN = multiprocessing.get_context("spawn")
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started meanwhile compute in one thread: libraries read these as they load."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a fresh process of one thread.

    An exception of the function reaches the caller, with the process's traceback as its cause. The
    process ends with the caller's, even if that is killed.

    Args:
        function: A function of a module; it, its arguments and its result are pickled.
        *args: Its arguments.
        **kwargs: Its keyword arguments.
    """
    with (
        one_thread_each(),
        ProcessPoolExecutor(1, mp_context=SPAWN, initializer=_end_with_parent) as executor,
    ):
        return executor.submit(function, *args, **kwargs).result()


def _end_with_parent() -> None:
    """A parent that is killed cannot stop what it began, which may compute for many minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
