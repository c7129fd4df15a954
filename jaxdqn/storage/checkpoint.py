"""Checkpoints: the complete state of a run, written in the background and verified when read.

A checkpoint is the directory ``checkpoints/STEP`` in a run directory. STEP is the number of
completed chunks:

- ``state/``: the leaves of the ``TrainState``, named by their paths (orbax);
- ``best/`` and ``last/``: parameters, readable without the rest;
- ``meta.json``: schema, configuration, shapes and the state of the host loop;
- ``MANIFEST``: the SHA-256 of every other file, in the format of ``sha256sum``.

A checkpoint is written under a temporary name and renamed once it is complete and on disk. A
checkpoint with its final name is therefore complete, even if the process is killed at any moment.
It contains arrays and JSON; reading it executes no code.
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


class DamagedCheckpoint(Exception):
    """The files of a checkpoint differ from what was written; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Copy of the state of a run in host memory."""

    step: int
    """Number of completed chunks."""
    state: PyTree
    """NumPy leaves; keys as key data"""
    best: Params
    last: Params
    meta: Record
    """Configuration and state of the host loop."""
    records: tuple[Path, ...]
    """Record files; ``meta`` contains their lengths."""
    score: float | None
    """Mean return of the last evaluation; None if there was no evaluation."""


class Checkpointer:
    """Writer of a run's checkpoints, in a separate thread and one at a time.

    It keeps the newest ``keep`` checkpoints and the one with the best score. The caller must hold
    the lock of the run directory, so unfinished checkpoints are those of a process that has exited.
    The constructor removes them.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self._run, self._directory, self._keep = run, run / CHECKPOINTS, keep
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._directory.mkdir(exist_ok=True)
        for unfinished in self._directory.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(unfinished)

    @property
    def busy(self) -> bool:
        """True while a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, snapshot: Snapshot) -> None:
        """Wait for the previous checkpoint, then start writing this one.

        Raises:
            OSError: if the previous checkpoint could not be written.
        """
        self.wait()
        # Not a daemon thread, so that the interpreter waits for it at exit.
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint being written is on the disk.

        Raises:
            OSError: if that checkpoint could not be written; earlier checkpoints are intact.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error of a failed write, once, without waiting for a write in progress.

        Raises:
            OSError: if a write has failed.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise _to_os_error(self._directory, failure)

    def _write(self, snapshot: Snapshot) -> None:
        unfinished = self._directory / f"{_UNFINISHED}{snapshot.step}"
        try:
            write(unfinished, snapshot)
            path = checkpoint_path(self._run, snapshot.step)
            replaced = self._directory / f"{_UNFINISHED}replaced"
            if path.exists():  # the same step, saved again after a rollback
                os.rename(path, replaced)
            os.rename(unfinished, path)
            sync(self._directory)
            shutil.rmtree(replaced, ignore_errors=True)
            with contextlib.suppress(OSError):  # the next checkpoint prunes again
                self._prune()
        except Exception as error:  # ``check`` raises it in the thread of the caller
            self._failure = error
            shutil.rmtree(unfinished, ignore_errors=True)

    def _prune(self) -> None:
        """Remove all checkpoints except the newest ones and the best one."""
        steps = steps_of(self._directory)
        kept = set(steps[: self._keep])
        # Among equal scores prefer the oldest, so that the best checkpoint does not change.
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
    """Return the steps of all finished checkpoints, the newest first."""
    if not directory.is_dir():
        return []
    names = [entry.name for entry in directory.iterdir() if entry.is_dir()]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def rename_damaged(damaged: Sequence[Path]) -> None:
    """Rename damaged checkpoints so that they no longer count as the newest."""
    for path in damaged:
        renamed, count = path.with_name(f"{path.name}.damaged"), 1
        while renamed.exists():
            count += 1
            renamed = path.with_name(f"{path.name}.damaged-{count}")
        path.rename(renamed)


def write(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot to a new directory and return once it is on disk."""
    path.mkdir(parents=True)
    for file in snapshot.records:
        if file.exists():
            sync(file)  # ``meta`` has its length, so its content must reach the disk first
    state = leaves_by_path(snapshot.state)
    with orbax_checkpointer() as checkpointer:
        # Orbax rejects arrays without elements; reading recreates them from their shapes.
        stored = {name: leaf for name, leaf in state.items() if leaf.size}
        trees = {STATE: stored, "best": snapshot.best, "last": snapshot.last}
        for name, tree in trees.items():
            checkpointer.save(path.resolve() / name, tree)
            checkpointer.wait_until_finished()
    meta = {
        "schema": SCHEMA,
        "step": snapshot.step,
        "score": snapshot.score,
        "not_finite": not_finite(snapshot.state),
        "leaves": {name: describe_leaf(leaf) for name, leaf in state.items()},
        **snapshot.meta,
    }
    (path / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    # List META last: if it is missing, the manifest was truncated.
    files.sort(key=lambda file: file == path / META)
    lines = [f"{digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    (path / MANIFEST).write_text("".join(lines), encoding="utf-8")
    directories = [entry for entry in path.rglob("*") if entry.is_dir()]
    for entry in (*files, path / MANIFEST, *directories, path):
        sync(entry)


def _score(path: Path) -> float:
    """Return the score of a checkpoint; minus infinity if it has no finite score."""
    try:
        score = json.loads((path / META).read_text(encoding="utf-8"))["score"]
    except (OSError, ValueError, KeyError):
        return -math.inf
    return score if isinstance(score, float) and math.isfinite(score) else -math.inf


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or the entries of a directory are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_os_error(directory: Path, failure: Exception) -> OSError:
    """Convert the error of a failed write to ``OSError``.

    On a full disk, for example, tensorstore raises ``ValueError``.
    """
    reason = failure.strerror if isinstance(failure, OSError) else str(failure)
    return OSError(getattr(failure, "errno", None), f"{reason or failure}", str(directory))
