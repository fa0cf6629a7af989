"""Episodes in parallel: spawned processes that ask for episodes, and store each at its end.

A worker asks whenever it has places free, so that the parent always knows which episodes each
worker holds, and names them if the worker dies.
"""

from __future__ import annotations

import gc
import math
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from eval.episodes import Episode, Experiment, Failure, Outcome
from eval.processes import SPAWN, one_thread_each
from eval.rollout import MakeEnv, RollingBatch
from eval.store import Store


@dataclass(frozen=True)
class Job:
    """What every worker needs to know.

    Attributes:
        experiment: Task, checkpoint and limits.
        make_env: Makes one environment; picklable.
        store: The file of results.
        run: The run's number in the store.
        episodes_per_worker: Places in a worker's rolling batch.
    """

    experiment: Experiment
    make_env: MakeEnv
    store: Path
    run: int
    episodes_per_worker: int


@dataclass(frozen=True)
class LostWorker:
    """A worker that ended before its work.

    Attributes:
        pid: Its process.
        exit_code: How it ended; negative for a signal.
        held: The episodes that it was running; they are not stored.
        traceback: Its exception, or "" if it was killed.
    """

    pid: int
    exit_code: int
    held: tuple[Episode, ...]
    traceback: str

    def __str__(self) -> str:
        """What happened, in words."""
        if self.exit_code < 0:
            cause = f"was killed by {signal.Signals(-self.exit_code).name}"
            if self.exit_code == -signal.SIGKILL:
                cause += " (if nobody did that, memory ran out: use fewer workers)"
        else:
            cause = f"ended with code {self.exit_code}"
        held = "; ".join(map(str, self.held)) or "none"
        return f"worker {self.pid} {cause}; it was running: {held}\n{self.traceback}".rstrip()


def run_episodes(
    job: Job,
    episodes: Iterable[Episode],
    workers: int,
    on_result: Callable[[Outcome | Failure], None],
) -> list[LostWorker]:
    """Run episodes in worker processes until all are done or all workers are lost.

    However this ends, by an exception too, no worker outlives it.

    Args:
        job: What to run them with.
        episodes: What to run, sampler by sampler in this order.
        workers: How many processes.
        on_result: Called here with every result, after it was stored.

    Returns:
        The workers that died; the others have gone on with the work.
    """
    queue = _Queue(episodes, workers)
    members: list[_Member] = []
    lost = []
    try:
        with one_thread_each():
            for _ in range(workers):
                connection, remote = SPAWN.Pipe()
                process = SPAWN.Process(target=_work, args=(remote, job), daemon=True)
                process.start()
                remote.close()  # else a dead worker's end would stay open here
                members.append(_Member(process, connection))
        while members:
            ready = wait([member.connection for member in members])
            for member in [member for member in members if member.connection in ready]:
                try:
                    result = member.receive(queue)
                except (EOFError, OSError):
                    members.remove(member)
                    if (loss := member.join()) is not None:
                        lost.append(loss)
                else:
                    if result is not None:
                        on_result(result)
    finally:
        for member in members:
            member.process.terminate()
            member.process.join()
    return lost


@dataclass(frozen=True)
class _Ask:
    """A worker's message: it has places for so many episodes, of one sampler or of any."""

    count: int
    sampler: str | None


@dataclass(frozen=True)
class _Crash:
    """A worker's last message: the exception that ends it."""

    traceback: str


class _Queue:
    """Episodes that no worker holds yet."""

    def __init__(self, episodes: Iterable[Episode], workers: int) -> None:
        self._pending: dict[str, deque[Episode]] = {}
        for episode in episodes:
            self._pending.setdefault(episode.sampler, deque()).append(episode)
        self._share = {
            sampler: math.ceil(len(pending) / workers) for sampler, pending in self._pending.items()
        }

    def take(self, ask: _Ask) -> list[Episode]:
        """Up to as many as asked for, never more than a worker's fair share; none at the end."""
        sampler = ask.sampler or next((s for s, left in self._pending.items() if left), None)
        if sampler is None:
            return []
        pending = self._pending[sampler]
        return [
            pending.popleft() for _ in range(min(ask.count, self._share[sampler], len(pending)))
        ]


@dataclass
class _Member:
    """The parent's view of one worker."""

    process: SpawnProcess
    connection: Connection
    held: set[Episode] = field(default_factory=set)
    traceback: str = ""

    def receive(self, queue: _Queue) -> Outcome | Failure | None:
        """Take the worker's next message, a result perhaps; EOFError or OSError if it is gone."""
        message = self.connection.recv()
        if isinstance(message, _Ask):
            episodes = queue.take(message)
            self.held.update(episodes)
            self.connection.send(episodes)
            return None
        if isinstance(message, _Crash):
            self.traceback = message.traceback
            return None
        assert isinstance(message, (Outcome, Failure))
        self.held.remove(message.episode)
        return message

    def join(self) -> LostWorker | None:
        """Wait for the end of a worker that has closed its connection; the loss, if it is one."""
        self.connection.close()
        self.process.join()
        assert self.process.pid is not None and self.process.exitcode is not None
        if self.process.exitcode == 0:
            return None
        return LostWorker(
            self.process.pid, self.process.exitcode, tuple(sorted(self.held)), self.traceback
        )


def _work(connection: Connection, job: Job) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        _run_until_done(connection, job)
    except (EOFError, ConnectionError):  # the parent is gone; what was stored stays
        return
    except Exception:
        connection.send(_Crash(traceback.format_exc()))
        raise SystemExit(1) from None


def _run_until_done(connection: Connection, job: Job) -> None:
    import torch

    torch.set_num_threads(1)

    def ask(sampler: str | None, count: int) -> Sequence[Episode]:
        connection.send(_Ask(count, sampler))
        episodes: Sequence[Episode] = connection.recv()
        return episodes

    experiment = job.experiment
    batch = RollingBatch(experiment.load_policy(), job.make_env, experiment.max_steps)
    # robosuite collects garbage whenever it lets a simulation go, which took a third of a reset to
    # look at what stays for a worker's life anyway: the libraries and the policy. The simulator's
    # are imported by the first environment.
    job.make_env().close()
    gc.collect()
    gc.freeze()
    with Store(job.store) as store:
        while episodes := ask(None, job.episodes_per_worker):
            for result in batch.run(episodes, partial(ask, episodes[0].sampler)):
                store.add(job.run, experiment, result)
                connection.send(result)
    batch.close()
