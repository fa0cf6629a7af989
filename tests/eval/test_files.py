from __future__ import annotations

import os

import pytest

from eval.files import write_text


def test_a_crash_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "results.md"
    write_text(path, "β old\n")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new\n")
    assert path.read_text(encoding="utf-8") == "β old\n" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_text(path, "new\n")
    assert path.read_text(encoding="utf-8") == "new\n"
