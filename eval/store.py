"""Where results are kept: one SQLite file, written by all workers, an episode at a time."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from eval.episodes import Episode, Experiment, Failure, Outcome, PlannedChunk
from eval.errors import StoreError
from eval.provenance import DECISIVE, MACHINE

_PATIENCE_S = 60  # for other processes that write to the same file
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    started TEXT NOT NULL,
    command TEXT NOT NULL,
    provenance TEXT NOT NULL  -- JSON: versions, machine, commit
);
CREATE TABLE episodes (
    task TEXT NOT NULL, checkpoint TEXT NOT NULL, sampler TEXT NOT NULL,
    seed INTEGER NOT NULL, repeat INTEGER NOT NULL, max_steps INTEGER NOT NULL,
    run INTEGER NOT NULL REFERENCES runs (id),
    steps INTEGER NOT NULL, reward REAL NOT NULL, success INTEGER NOT NULL,
    chunks INTEGER NOT NULL, calls INTEGER NOT NULL, evaluations INTEGER NOT NULL,
    PRIMARY KEY (task, checkpoint, sampler, seed, repeat, max_steps)
);
CREATE TABLE failures (
    task TEXT NOT NULL, checkpoint TEXT NOT NULL, sampler TEXT NOT NULL,
    seed INTEGER NOT NULL, repeat INTEGER NOT NULL, max_steps INTEGER NOT NULL,
    run INTEGER NOT NULL REFERENCES runs (id),
    traceback TEXT NOT NULL
);
CREATE TABLE planning (
    task TEXT NOT NULL, checkpoint TEXT NOT NULL,
    run INTEGER NOT NULL REFERENCES runs (id),
    sampler TEXT NOT NULL, seed INTEGER NOT NULL, chunk INTEGER NOT NULL,
    seconds REAL NOT NULL, calls INTEGER NOT NULL, evaluations INTEGER NOT NULL,
    PRIMARY KEY (task, checkpoint, run, sampler, seed, chunk)
);
"""


class Store(AbstractContextManager["Store"]):
    """The results of evaluations, in one file.

    Every `add` is a transaction of its own: whatever happens to the process, what was added stays.
    Several processes may add at the same time.

    Args:
        path: The file; it is made if there is none.
        read_only: Whether to leave the file as it is, which must be there then.

    Raises:
        StoreError: If the file is something else, or of another version of this project, or is to
            be read and not there.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        if read_only and not path.is_file():
            raise StoreError(
                f"{path}: expected a file of results to report, found none; name the output=… of "
                "an evaluation, or run it without report_only=true"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        self._db = sqlite3.connect(uri, uri=True, timeout=_PATIENCE_S, isolation_level=None)
        try:
            if not read_only:
                self._write_ahead()
                self._db.execute("PRAGMA foreign_keys = ON")
                self._create()
            self._check_schema()
        except sqlite3.DatabaseError as error:
            self._db.close()
            if _is_locked(error):
                raise StoreError(
                    f"{path}: expected to write within {_PATIENCE_S} s, but another process holds "
                    "the file; wait for it, or choose another output=…"
                ) from error
            raise StoreError(
                f"{path}: expected a file of results or none, but SQLite says: {error}; move the "
                "file away, or choose another output=…"
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._db.close()

    def begin_run(self, command: str, provenance: Mapping[str, str]) -> int:
        """Note that a run begins; returns its number.

        Args:
            command: What the user asked for.
            provenance: Versions and machine (see `provenance.describe`).
        """
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        cursor = self._db.execute(
            "INSERT INTO runs (started, command, provenance) VALUES (?, ?, ?)",
            (started, command, json.dumps(dict(provenance))),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def add(self, run: int, experiment: Experiment, result: Outcome | Failure) -> None:
        """Keep how an episode ended."""
        episode = result.episode
        key = (
            experiment.task,
            experiment.fingerprints[episode.sampler],
            episode.sampler,
            episode.seed,
            episode.repeat,
            experiment.max_steps,
            run,
        )
        if isinstance(result, Failure):
            self._db.execute(
                "INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*key, result.traceback)
            )
            return
        self._db.execute(
            "INSERT OR REPLACE INTO episodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *key,
                result.steps,
                result.reward,
                result.success,
                result.chunks,
                result.calls,
                result.evaluations,
            ),
        )

    def outcomes(
        self, experiment: Experiment, episodes: Iterable[Episode]
    ) -> dict[Episode, Outcome]:
        """Those of the episodes that have run to their end."""
        wanted = set(episodes)
        rows = self._db.execute(
            "SELECT checkpoint, sampler, seed, repeat, "
            "steps, reward, success, chunks, calls, evaluations "
            "FROM episodes WHERE task = ? AND max_steps = ?",
            (experiment.task, experiment.max_steps),
        )
        found = {}
        for checkpoint, sampler, seed, repeat, steps, reward, success, *counts in rows:
            episode = Episode(sampler, seed, repeat)
            if episode in wanted and checkpoint == experiment.fingerprints[sampler]:
                found[episode] = Outcome(episode, steps, reward, bool(success), *counts)
        return found

    def failed(self, experiment: Experiment) -> set[Episode]:
        """The task's episodes that an exception has ended, at any time."""
        rows = self._db.execute(
            "SELECT checkpoint, sampler, seed, repeat FROM failures "
            "WHERE task = ? AND max_steps = ?",
            (experiment.task, experiment.max_steps),
        )
        return {
            Episode(sampler, *key)
            for checkpoint, sampler, *key in rows
            if checkpoint == experiment.fingerprints.get(sampler)
        }

    def commits(self, experiment: Experiment, episodes: Iterable[Episode]) -> list[str]:
        """The commits at which these episodes ran, the earliest first."""
        made_with = self.made_with(experiment, episodes)
        return list(dict.fromkeys(stored.get("commit", "none") for stored in made_with))

    def machines(self, experiment: Experiment, episodes: Iterable[Episode]) -> list[str]:
        """The machines on which these episodes ran, in words, the earliest first."""
        return list(
            dict.fromkeys(
                ", ".join(f"{name} {stored[name]}" for name in MACHINE if name in stored)
                for stored in self.made_with(experiment, episodes)
            )
        )

    def made_with(
        self, experiment: Experiment, episodes: Iterable[Episode]
    ) -> list[dict[str, str]]:
        """The provenances of these episodes' runs, the earliest first."""
        wanted = set(episodes)
        rows = self._db.execute(
            "SELECT provenance, checkpoint, sampler, seed, repeat "
            "FROM episodes JOIN runs ON run = id "
            "WHERE task = ? AND max_steps = ? ORDER BY started, id",
            (experiment.task, experiment.max_steps),
        )
        texts = [
            text
            for text, checkpoint, sampler, *key in rows
            if Episode(sampler, *key) in wanted and checkpoint == experiment.fingerprints[sampler]
        ]
        # What was not yet noted at the time is called "none", as what was not installed.
        known = dict.fromkeys(DECISIVE, "none")
        return [{**known, **json.loads(text)} for text in dict.fromkeys(texts)]

    def check_versions(
        self, experiment: Experiment, episodes: Iterable[Episode], provenance: Mapping[str, str]
    ) -> None:
        """Refuse to mix results that were made with different versions.

        Args:
            experiment: What is evaluated.
            episodes: The episodes that are stored and would be used.
            provenance: What the others are made with.

        Raises:
            StoreError: Naming the versions that differ.
        """
        differences = {
            f"{name} {stored[name]} (not {provenance[name]})"
            for stored in self.made_with(experiment, episodes)
            for name in DECISIVE
            if stored[name] != provenance[name]
        }
        if differences:
            raise StoreError(
                f"{self.path} holds episodes of this evaluation that were made with "
                f"{', '.join(sorted(differences))}; results of different versions are not mixed: "
                "restore those versions, or choose another output=…"
            )

    def add_planning(
        self, run: int, experiment: Experiment, chunks: Sequence[PlannedChunk]
    ) -> None:
        """Keep the planning times of a run, all or none."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT INTO planning VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    experiment.task,
                    experiment.fingerprints[chunk.sampler],
                    run,
                    chunk.sampler,
                    chunk.seed,
                    chunk.chunk,
                    chunk.seconds,
                    chunk.calls,
                    chunk.evaluations,
                )
                for chunk in chunks
            ],
        )
        self._db.execute("COMMIT")

    def planning(
        self,
        experiment: Experiment,
        samplers: Sequence[str],
        chunks: int,
        provenance: Mapping[str, str],
    ) -> list[PlannedChunk]:
        """The newest planning times of these samplers on one machine with the same versions.

        Args:
            experiment: Whose times.
            samplers: All that must have been timed together, among others perhaps.
            chunks: How many chunks each of them must have planned.
            provenance: What they must have been made with.

        Returns:
            The times of one run, in the order in which they were added; none if there is no such
            run.
        """
        runs = self._db.execute(
            "SELECT id, provenance FROM runs WHERE id IN "
            "(SELECT run FROM planning WHERE task = ?) ORDER BY id DESC",
            (experiment.task,),
        )
        same = (*DECISIVE, "cpu", "gpu")
        for run, text in runs.fetchall():
            stored = json.loads(text)
            if any(stored.get(name, "none") != provenance.get(name, "none") for name in same):
                continue
            rows = self._db.execute(
                "SELECT checkpoint, sampler, seed, chunk, seconds, calls, evaluations "
                "FROM planning WHERE task = ? AND run = ? ORDER BY rowid",
                (experiment.task, run),
            )
            found = [
                PlannedChunk(sampler, *rest)
                for checkpoint, sampler, *rest in rows
                if sampler in samplers and checkpoint == experiment.fingerprints[sampler]
            ]
            counts = Counter(chunk.sampler for chunk in found)
            if counts == dict.fromkeys(samplers, chunks):
                return found
        return []

    def _write_ahead(self) -> None:
        """Let processes read while another writes.

        A process that comes while another does the same is turned away at once, whatever the
        connection's timeout (SQLite sees a deadlock), so that it has to ask again.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not _is_locked(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _create(self) -> None:
        """Make the tables, unless they are there; workers may come at the same time."""
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        self._db.execute("COMMIT")

    def _check_schema(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version != _SCHEMA_VERSION:
            self._db.close()
            raise StoreError(
                f"{self.path}: expected results of version {_SCHEMA_VERSION}, got version "
                f"{version}, from another version of this project; choose another output=…"
            )


def _is_locked(error: sqlite3.Error) -> bool:
    """Whether SQLite gave up waiting for another process (error codes need Python 3.11)."""
    return "locked" in str(error)
