"""Stopping long work in good order."""

import signal
from types import FrameType
from typing import NoReturn


def stop_like_ctrl_c() -> None:
    """Let `kill` end this process as Ctrl-C does: work in the background hears nothing else."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
