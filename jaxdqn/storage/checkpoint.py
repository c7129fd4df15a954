"""Checkpoints: the whole of a run on disk, written while it goes on, verified when read.

A checkpoint is a directory ``checkpoints/STEP`` of a run, STEP being the chunk after
which it was taken:

- ``state/``: the leaves of the ``TrainState``, named by their paths (orbax);
- ``best/`` and ``last/``: parameters, to be read without the rest;
- ``meta.json``: schema, configuration, shapes and the host's side of the run;
- ``MANIFEST``: the SHA-256 of every file, in the format of ``sha256sum``.

It is written under another name and renamed when it is whole and on the disk, so that
whatever ends the process leaves complete checkpoints or none. Reading takes arrays and
JSON, never code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.params import orbax_checkpointer
from jaxdqn.storage.state import describe_leaf, leaves_by_path
from jaxdqn.training.guard import not_finite
from jaxdqn.types import Params, PyTree

CHECKPOINTS = "checkpoints"
SCHEMA = 3
STATE, META, MANIFEST = "state", "meta.json", "MANIFEST"
_DIGITS = 9
_UNFINISHED = ".unfinished-"


class Damaged(Exception):
    """A checkpoint is not what was written; the message says where."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A moment of a run, in host memory that nothing else writes to."""

    step: int
    """Chunks run."""
    state: PyTree
    """NumPy leaves; keys as their words"""
    best: Params
    last: Params
    meta: Record
    """What the host needs to go on, and the configuration."""
    records: tuple[Path, ...]
    """Files whose lengths are in ``meta``."""
    score: float | None
    """The mean return of the last evaluation: the best checkpoint is kept."""


class Checkpointer:
    """Writes the checkpoints of one run, one at a time, in a thread of its own.

    Keeps the newest ``keep`` and the one with the best score. The caller holds the
    run's lock: unfinished checkpoints found here were left by a process that has ended.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self._run, self._directory, self._keep = run, run / CHECKPOINTS, keep
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._directory.mkdir(exist_ok=True)
        for left in self._directory.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, snapshot: Snapshot) -> None:
        """Begin to write a snapshot, after the one before is there.

        Raises:
            OSError: if the one before could not be written.
        """
        self.wait()
        # Not a daemon: an interpreter that ends waits for it.
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when everything is on the disk.

        Raises:
            OSError: if something could not be written; earlier checkpoints are whole.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Say at once whether a write has failed.

        Raises:
            OSError: if so.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise _as_os_error(self._directory, failure)

    def _write(self, snapshot: Snapshot) -> None:
        unfinished = self._directory / f"{_UNFINISHED}{snapshot.step}"
        try:
            write(unfinished, snapshot)
            place = checkpoint_path(self._run, snapshot.step)
            replaced = self._directory / f"{_UNFINISHED}replaced"
            if place.exists():  # taken again after going back to an earlier one
                os.rename(place, replaced)
            os.rename(unfinished, place)
            sync(self._directory)
            shutil.rmtree(replaced, ignore_errors=True)
            with contextlib.suppress(OSError):  # the next one tries again
                self._prune()
        except Exception as error:  # raised in the caller's thread by wait
            self._failure = error
            shutil.rmtree(unfinished, ignore_errors=True)

    def _prune(self) -> None:
        steps = steps_of(self._directory)
        kept = set(steps[: self._keep])
        # Of equals the oldest, so that it stays the same one.
        scored = [(_score(checkpoint_path(self._run, step)), -step) for step in steps]
        best = max((score, step) for score, step in scored)
        if best[0] > -math.inf:
            kept.add(-best[1])
        for step in set(steps) - kept:
            shutil.rmtree(checkpoint_path(self._run, step))


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the directory of a checkpoint."""
    return run / CHECKPOINTS / f"{step:0{_DIGITS}d}"


def steps_of(directory: Path) -> list[int]:
    """Return the steps of the finished checkpoints, the newest first."""
    if not directory.is_dir():
        return []
    names = [entry.name for entry in directory.iterdir() if entry.is_dir()]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def set_aside(damaged: Sequence[Path]) -> None:
    """Rename damaged checkpoints, so that they do not count among the newest."""
    for place in damaged:
        aside, count = place.with_name(f"{place.name}.damaged"), 1
        while aside.exists():
            count += 1
            aside = place.with_name(f"{place.name}.damaged-{count}")
        place.rename(aside)


def write(place: Path, snapshot: Snapshot) -> None:
    """Write a snapshot to a new directory, and return when it is on the disk."""
    place.mkdir(parents=True)
    for file in snapshot.records:
        if file.exists():
            sync(file)  # a checkpoint says how long they are
    state = leaves_by_path(snapshot.state)
    with orbax_checkpointer() as checkpointer:
        # Orbax refuses arrays without elements, and has no use for them.
        stored = {name: leaf for name, leaf in state.items() if leaf.size}
        trees = {STATE: stored, "best": snapshot.best, "last": snapshot.last}
        for name, tree in trees.items():
            checkpointer.save(place.resolve() / name, tree)
            checkpointer.wait_until_finished()
    meta = {
        "schema": SCHEMA,
        "step": snapshot.step,
        "score": snapshot.score,
        "not_finite": not_finite(snapshot.state),
        "leaves": {name: describe_leaf(leaf) for name, leaf in state.items()},
        **snapshot.meta,
    }
    (place / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    files = sorted(file for file in place.rglob("*") if file.is_file())
    # Last, so that a manifest cut short lacks it.
    files.sort(key=lambda file: file == place / META)
    lines = [f"{digest(file)}  {file.relative_to(place).as_posix()}\n" for file in files]
    (place / MANIFEST).write_text("".join(lines), encoding="utf-8")
    for path in (*files, place / MANIFEST, *(p for p in place.rglob("*") if p.is_dir()), place):
        sync(path)


def _score(place: Path) -> float:
    try:
        score = json.loads((place / META).read_text(encoding="utf-8"))["score"]
    except (OSError, ValueError, KeyError):
        return -math.inf
    return score if isinstance(score, float) and math.isfinite(score) else -math.inf


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_os_error(directory: Path, failure: Exception) -> OSError:
    """Return a failed write as one; tensorstore reports a full disk in a ``ValueError``."""
    said = failure.strerror if isinstance(failure, OSError) else str(failure)
    return OSError(getattr(failure, "errno", None), f"{said or failure}", str(directory))
