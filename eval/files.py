"""Files of results, which are whole at any time."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file under another name first: who reads meanwhile, or a crash, leaves the old one.

    Args:
        path: The file; its folder is there.
        text: All that it is to hold.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
