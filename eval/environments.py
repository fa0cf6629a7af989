"""The environment that a policy was trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium

import envs
from asd_policy.policies.spec import PolicySpec


def env_options(spec: PolicySpec) -> dict[str, Any]:
    """What `envs.make` must be told for a policy: its actions' meaning, and the images it sees."""
    options: dict[str, Any] = {"action_mode": spec.action_mode}
    if spec.images:
        options["images"] = spec.images
    return options


def env_maker(spec: PolicySpec) -> Callable[..., gymnasium.Env]:
    """Makes one environment for a policy; picklable, and takes the options of `envs.make`."""
    return maker(spec.task, env_options(spec))


def maker(task: str, options: Mapping[str, Any]) -> Callable[..., gymnasium.Env]:
    """Makes one environment of a task; picklable."""
    return partial(envs.make, task, **options)
