from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from foreign import FOREIGN
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from asd_policy import CheckpointError
from envs.errors import UnknownTaskError
from eval.episodes import Episode
from eval.errors import RequestError
from eval.request import Request
from eval.settings import device

pytest_plugins = ["eval_fixtures"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "eval"


def read(*overrides: str, name: str = "success") -> Request:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return Request.from_config(compose(name, list(overrides)))


def test_a_request_lists_its_episodes_sampler_by_sampler(checkpoint):
    request = read(f"checkpoint={checkpoint}", "seeds=2", "repeats=2", "sampler=[ddpm,asd-paper:8]")
    assert request.samplers == ("ddpm", "asd-paper:8")
    assert request.episodes[:4] == [
        Episode("ddpm", seed, repeat) for seed in (100_000, 100_001) for repeat in (0, 1)
    ]
    assert [episode.sampler for episode in request.episodes[4:]] == ["asd-paper:8"] * 4
    (experiment,) = request.experiments
    assert (experiment.task, experiment.num_steps, experiment.max_steps) == ("pusht", 10, 300)
    assert request.output == Path("outputs/success/pusht")  # the checkpoint's name


def test_checkpoints_of_two_trainings_have_folders_of_their_own(checkpoint, tmp_path):
    """Training calls every checkpoint by the same name."""
    for run in ("a", "b"):
        shutil.copytree(checkpoint, tmp_path / run / "checkpoint")
        request = read(f"checkpoint={tmp_path}/{run}/checkpoint")
        assert request.output == Path("outputs/success") / run


@pytest.mark.parametrize(("available", "found"), [(False, "cpu"), (True, "cuda")])
def test_results_are_of_the_device_that_auto_comes_to(monkeypatch, available, found):
    """Else those of CPU and GPU would lie in one store as if they were of the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert device(OmegaConf.create({"device": "auto"})) == found


def test_another_projects_file_is_to_be_converted():
    with pytest.raises(RequestError, match=f"formats.convert {FOREIGN} FOLDER"):
        read("task=square", f"checkpoint={FOREIGN}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=lift"], "is a policy for 'pusht', not for 'lift'"),
        (["task=[pusht,lift]"], "one checkpoint cannot serve"),
        (["task=[]"], "task: expected a name or a list of names"),
        (["task=[pusht,pusht]"], "task: the same one is asked for twice"),
        (["sampler=[asd-paper,asd-paper:24]"], "the same one is asked for twice"),
        (["device=nonsense"], "device: 'nonsense' cannot be used here"),
        (["seeds=0"], "seeds: expected a whole number of at least 1, got 0"),
        (["repeats=1.5"], "repeats: expected a whole number"),
        (["max_steps=301"], "pusht ends after 300 steps"),
        (["workers=0"], "workers: expected a whole number of at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(checkpoint, overrides, message):
    with pytest.raises(RequestError, match=message):
        read(f"checkpoint={checkpoint}", *overrides)


def test_an_unknown_task_is_named():
    with pytest.raises(UnknownTaskError, match="unknown task 'fly'"):
        read("task=fly")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nobody"):
        read(f"checkpoint={tmp_path / 'nobody'}")


def test_an_unknown_policy_is_answered_with_those_of_the_task(tmp_path, monkeypatch):
    known = r"checkpoints \(chi_unet, chi_unet_image\), got 'nobody'"
    with pytest.raises(RequestError, match=f"policy: expected one of those for pusht in .*{known}"):
        read("policy=nobody")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="there are none; run this in the clone"):
        read("policy=chi_unet")
