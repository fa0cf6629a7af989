from __future__ import annotations

from dataclasses import replace

import imageio.v2 as imageio
import pytest

from eval.episodes import Episode
from eval.processes import run_apart
from eval.video import film

pytest_plugins = ["eval_fixtures"]


def test_a_pusht_episode_is_filmed(tmp_path, experiment):
    film(experiment, Episode("refine:4", 3, 0), tmp_path / "episode.mp4")
    reader = imageio.get_reader(tmp_path / "episode.mp4")
    frames = [frame for frame in reader]  # list() would ask for its length, which is infinite
    assert reader.get_meta_data()["fps"] == 10
    # The start, every step, and the end held for a second.
    assert len(frames) == 1 + experiment.max_steps + 10
    assert all(size % 16 == 0 for size in frames[0].shape[:2])
    assert (frames[0] != frames[-1]).any()


def test_an_exception_in_a_process_apart_keeps_its_traceback(tmp_path, experiment):
    missing = replace(experiment, checkpoint=tmp_path)
    with pytest.raises(Exception, match="no checkpoint of a known") as error:
        run_apart(film, missing, Episode("ddpm", 3, 0), tmp_path / "episode.mp4")
    assert "read_checkpoint" in str(error.value.__cause__)
