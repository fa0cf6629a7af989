"""Stopping long work in good order."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


def stop_like_ctrl_c() -> None:
    """Let `kill` end this process as Ctrl-C does: work in the background hears nothing else."""
    signal.signal(signal.SIGTERM, _interrupt)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and `kill` take effect when the block is done: half of it is no state to keep."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's to answer
        return
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
