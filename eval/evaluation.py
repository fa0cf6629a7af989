"""An evaluation from beginning to end: episodes, planning times, report, plots, videos."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import envs
from envs.errors import RenderError
from eval import plots
from eval.episodes import Episode, Experiment, Outcome, PlannedChunk
from eval.errors import StoreError
from eval.planning_time import latencies, time_planning
from eval.processes import run_apart
from eval.progress import Progress
from eval.provenance import describe
from eval.report import Report
from eval.request import Request
from eval.rollout import MakeEnv
from eval.store import Store
from eval.summary import Row, missing, summarize
from eval.trial import try_samplers
from eval.video import film
from eval.workers import Job, run_episodes


def evaluate(request: Request, command: str) -> bool:
    """Run what is missing of an evaluation, and report on all of it.

    Args:
        request: What to evaluate.
        command: How the user asked for it, for the report.

    Returns:
        Whether every episode that was asked for has run to its end, and nothing else went wrong.

    Raises:
        RequestError: If a sampler cannot run on one of the policies.
        StoreError: If stored results must not be mixed with new ones, or there are none to report.
    """
    now = describe(request.experiments[0].device)
    with Store(request.store, read_only=request.report_only) as store:
        provenance = _of_stored(request, store, now) if request.report_only else now
        for experiment in request.experiments:
            store.check_versions(experiment, request.episodes, provenance)
        problems = []
        if not request.report_only:
            for experiment in request.experiments:
                _try_missing(request, experiment, store)
            run = store.begin_run(command, provenance)
            for experiment in request.experiments:
                run_missing(request, experiment, store, run, experiment.make_env)
            for experiment in request.experiments:
                problems += _time_planning(request, experiment, store, run, provenance)
        rows, gaps, filmed, commits, machines = [], [], [], {}, {}
        for experiment in request.experiments:
            outcomes = store.outcomes(experiment, request.episodes)
            gaps += missing(experiment.task, request.episodes, outcomes, store.failed(experiment))
            if outcomes:
                planned = _planned(request, experiment, store, provenance)
                rows += _report_task(request, experiment, outcomes, planned)
                commits[experiment.task] = store.commits(experiment, request.episodes)
                machines[experiment.task] = store.machines(experiment, request.episodes)
                if not request.report_only:
                    filmed += [(experiment, episode) for episode in _to_film(request, outcomes)]
    if rows:
        steps = {experiment.task: experiment.num_steps for experiment in request.experiments}
        report = Report(
            command,
            request.samplers[0],
            rows,
            gaps,
            problems,
            steps,
            provenance,
            commits,
            machines,
        )
        report.write(request.output)
        print(f"\n{report.text()}\n")
    made = [_film(experiment, episode, request.output) for experiment, episode in filmed]
    print(f"results are in {request.output}")
    return not gaps and not problems and all(made)


def run_missing(
    request: Request, experiment: Experiment, store: Store, run: int, make_env: MakeEnv
) -> bool:
    """Run the episodes of a task that are not stored, and say what went wrong.

    Args:
        request: What to evaluate.
        experiment: Which task of it.
        store: Where results are kept.
        run: The run's number in the store.
        make_env: Makes one environment; picklable.

    Returns:
        Whether every episode of the task is stored now.
    """
    episodes = request.episodes
    stored = store.outcomes(experiment, episodes)
    missing = [episode for episode in episodes if episode not in stored]
    places = request.places[experiment.task]
    job = Job(experiment, make_env, store.path, run, places)
    metric = envs.spec(experiment.task).metric
    with Progress(experiment.task, metric, episodes, stored.values()) as progress:
        lost = run_episodes(job, missing, min(request.workers, len(missing)), progress.update)
    for worker in lost:
        print(f"{experiment.task}: {worker}", file=sys.stderr)
    left = len(episodes) - len(store.outcomes(experiment, episodes))
    if left:
        failed = "; ".join(str(failure.episode) for failure in progress.failures) or "none"
        print(
            f"{experiment.task}: {left} of {len(episodes)} episodes have no result (failed: "
            f"{failed}); the others are kept, and the same command tries these again",
            file=sys.stderr,
        )
    return left == 0


def _try_missing(request: Request, experiment: Experiment, store: Store) -> None:
    """Refuse samplers that could not run the episodes that are missing."""
    stored = store.outcomes(experiment, request.episodes)
    to_run = [episode.sampler for episode in request.episodes if episode not in stored]
    if to_run:
        torch.set_num_threads(1)
        try_samplers(experiment.load_policy().planner, dict.fromkeys(to_run))


def _of_stored(request: Request, store: Store, now: Mapping[str, str]) -> dict[str, str]:
    """What the newest stored episodes were made with; the commit is that of the report.

    Raises:
        StoreError: If there are none.
    """
    stored = [
        made_with
        for experiment in request.experiments
        for made_with in store.made_with(experiment, request.episodes)
    ]
    if not stored:
        raise StoreError(
            f"{request.store}: expected stored episodes to report, found none of these "
            "tasks, checkpoints, samplers and seeds; run them without report_only=true"
        )
    return {**stored[-1], "commit": now["commit"]}


def _time_planning(
    request: Request,
    experiment: Experiment,
    store: Store,
    run: int,
    provenance: Mapping[str, str],
) -> list[str]:
    """Measure the planning times of all samplers that have run, unless they are stored.

    Returns:
        What went wrong, if anything: the episodes are to be reported in any case.
    """
    samplers = _have_run(request, experiment, store)
    if not samplers or _planned(request, experiment, store, provenance):
        return []
    first, chunks = request.seeds[0], request.planning_chunks
    try:
        planned = run_apart(time_planning, experiment, samplers, experiment.make_env, first, chunks)
    except Exception as error:
        traceback.print_exception(error)
        cause = f"{type(error).__name__}: {error}"
        return [
            f"{experiment.task}: planning was not timed, as it failed from seed {first} on: {cause}"
        ]
    store.add_planning(run, experiment, planned)
    return []


def _planned(
    request: Request, experiment: Experiment, store: Store, provenance: Mapping[str, str]
) -> list[PlannedChunk]:
    """The stored planning times of all samplers that have run; none if they are to be measured."""
    samplers = _have_run(request, experiment, store)
    return store.planning(experiment, samplers, request.planning_chunks, provenance)


def _have_run(request: Request, experiment: Experiment, store: Store) -> list[str]:
    """The samplers to be timed: those with episodes, and what they are compared with."""
    ran = {episode.sampler for episode in store.outcomes(experiment, request.episodes)}
    if not ran or not request.planning_chunks:
        return []
    return [sampler for sampler in request.samplers if sampler in {request.samplers[0], *ran}]


def _report_task(
    request: Request,
    experiment: Experiment,
    outcomes: Mapping[Episode, Outcome],
    planned: Sequence[PlannedChunk],
) -> list[Row]:
    """The rows of a task, drawn too."""
    task = envs.spec(experiment.task)
    times = latencies(planned, baseline=request.samplers[0])
    rows = summarize(experiment, task.metric, request.samplers, outcomes.values(), times)
    plots.plot(request.output / f"{task.name}.png", task.title, rows, planned)
    return rows


def _to_film(request: Request, outcomes: Mapping[Episode, Outcome]) -> list[Episode]:
    """The first seeds with the last sampler."""
    episodes = [
        episode
        for episode in request.episodes
        if episode in outcomes and episode.sampler == request.samplers[-1] and episode.repeat == 0
    ]
    return episodes[: request.videos]


def _film(experiment: Experiment, episode: Episode, output: Path) -> bool:
    """Film an episode; whether all went well.

    A machine that cannot draw it has no video, and nothing is wrong with it.
    """
    try:
        run_apart(film, experiment, episode, output / f"{experiment.task}_seed{episode.seed}.mp4")
    except RenderError as error:
        print(f"{experiment.task}: no video of {episode}, the results hold: {error}")
    except Exception as error:
        traceback.print_exception(error)
        print(f"{experiment.task}: filming {episode} failed, the results hold", file=sys.stderr)
        return False
    return True
