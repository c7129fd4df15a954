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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.guard import not_finite
from jaxdqn.loggers import Record
from jaxdqn.run_directory import orbax_checkpointer
from jaxdqn.types import Params, PyTree

CHECKPOINTS = "checkpoints"
SCHEMA = 3
_STATE, _META, _MANIFEST = "state", "meta.json", "MANIFEST"
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


class Restored(NamedTuple):
    """A checkpoint that was read and found whole."""

    step: int
    state: PyTree
    """NumPy leaves in the structure asked for"""
    meta: Record
    passed_over: tuple[str, ...]
    """Newer checkpoints that are damaged, a line each."""
    damaged: tuple[Path, ...]
    """Where those are."""


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
            place = place_of(self._run, snapshot.step)
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
        scored = [(_score(place_of(self._run, step)), -step) for step in steps]
        best = max((score, step) for score, step in scored)
        if best[0] > -math.inf:
            kept.add(-best[1])
        for step in set(steps) - kept:
            shutil.rmtree(place_of(self._run, step))


def place_of(run: Path, step: int) -> Path:
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


def snapshot_words(state: PyTree) -> PyTree:
    """Copy a state, its keys as words; jit it, for ``to_host`` to read.

    The copy is what keeps the state donatable: on CPU a NumPy array of a JAX array
    is a view, and a buffer that is viewed cannot be donated, so that the next chunk
    would copy the ring.
    """
    return jax.tree.map(jnp.copy, words_of(state))


def words_of(state: PyTree) -> PyTree:
    """Return a state with its keys as words."""
    return jax.tree.map(_words, state)


def revive_words(words: PyTree, target: PyTree) -> PyTree:
    """Return the state of which the words were taken; jit it.

    Args:
        words: as ``snapshot_words`` gives them.
        target: the state's dtypes, in the same structure.
    """

    def of_leaf(leaf: Any, like: Any) -> Any:
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(leaf, impl=like.dtype)
        # A copy: the buffer must be the device's own to be donated.
        return jnp.copy(leaf)

    return jax.tree.map(of_leaf, words, target)


def to_host(tree: PyTree) -> PyTree:
    """Return the leaves as NumPy arrays, of a tree that nobody will donate."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def write(place: Path, snapshot: Snapshot) -> None:
    """Write a snapshot to a new directory, and return when it is on the disk."""
    place.mkdir(parents=True)
    for file in snapshot.records:
        if file.exists():
            sync(file)  # a checkpoint says how long they are
    state = _by_path(snapshot.state)
    with orbax_checkpointer() as checkpointer:
        # Orbax refuses arrays without elements, and has no use for them.
        stored = {name: leaf for name, leaf in state.items() if leaf.size}
        trees = {_STATE: stored, "best": snapshot.best, "last": snapshot.last}
        for name, tree in trees.items():
            checkpointer.save(place.resolve() / name, tree)
            checkpointer.wait_until_finished()
    meta = {
        "schema": SCHEMA,
        "step": snapshot.step,
        "score": snapshot.score,
        "not_finite": not_finite(snapshot.state),
        "leaves": {name: _form(leaf) for name, leaf in state.items()},
        **snapshot.meta,
    }
    (place / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    files = sorted(file for file in place.rglob("*") if file.is_file())
    # Last, so that a manifest cut short lacks it.
    files.sort(key=lambda file: file == place / _META)
    lines = [f"{_digest(file)}  {file.relative_to(place).as_posix()}\n" for file in files]
    (place / _MANIFEST).write_text("".join(lines), encoding="utf-8")
    for path in (*files, place / _MANIFEST, *(p for p in place.rglob("*") if p.is_dir()), place):
        sync(path)


def read_meta(place: Path) -> Record:
    """Verify a checkpoint and return what it says of itself.

    Raises:
        Damaged: if a file is missing or not what was written.
        ValueError: if it was written under another schema.
    """
    try:
        lines = (place / _MANIFEST).read_text(encoding="utf-8").splitlines()
        listed = [line.split("  ", 1) for line in lines]
        if not listed or listed[-1][-1] != _META:
            raise Damaged(f"{_MANIFEST}: cut short")
        for digest, name in listed:
            if _digest(place / name) != digest:
                raise Damaged(f"{name}: not what was written")
        meta = json.loads((place / _META).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Damaged(f"{Path(error.filename or place).name}: {error.strerror}") from error
    except OSError as error:
        # Permission, too many files, a network: the checkpoint may be whole.
        raise ValueError(f"run={str(place)!r}: must be readable: {error}") from error
    except (ValueError, UnicodeError) as error:
        raise Damaged(f"{_MANIFEST}: {error}") from error
    if meta["schema"] != SCHEMA:
        raise ValueError(
            f"schema={meta['schema']}: the checkpoint {place} must be of schema {SCHEMA}, "
            "which this version reads"
        )
    return meta


def read_newest(
    run: Path,
    target: Callable[[Record], PyTree],
    *,
    check: Callable[[Record], None] | None = None,
    finite: bool = False,
) -> Restored | None:
    """Read the newest checkpoint that is whole; None if none was ever finished.

    Args:
        run: the run directory.
        target: given a checkpoint's meta, the shapes and dtypes of its state; typed keys are
            read as their words.
        check: raises ``ValueError`` on a checkpoint's meta if it is of another run.
        finite: whether to pass over those that hold something that is not finite.

    Raises:
        ValueError: if all are damaged, or one does not fit ``target``.
    """
    directory, passed_over = run / CHECKPOINTS, []
    damaged: list[Path] = []
    for step in steps_of(directory):
        place = place_of(run, step)
        try:
            meta = read_meta(place)
            if check is not None:
                check(meta)
            if finite and meta["not_finite"]:
                continue
            state = _read_state(place, meta, target(meta))
        except Damaged as damage:
            passed_over.append(f"checkpoint {place} is damaged: {damage}")
            damaged.append(place)
            continue
        return Restored(step, state, meta, tuple(passed_over), tuple(damaged))
    if passed_over:
        raise ValueError(
            f"run={str(run)!r}: must hold a checkpoint that is whole; {'; '.join(passed_over)}. "
            f"move {directory} away to start the run anew"
        )
    return None


def newest_whole(run: Path) -> Path | None:
    """Return the newest checkpoint that is whole, if there is one."""
    for step in steps_of(run / CHECKPOINTS):
        try:
            read_meta(place_of(run, step))
        except (Damaged, ValueError):
            continue
        return place_of(run, step)
    return None


def _read_state(place: Path, meta: Record, target: PyTree) -> PyTree:
    words = jax.eval_shape(words_of, target)
    wanted = _by_path(words)
    stored = meta["leaves"]
    for name in {**wanted, **stored}:
        if name not in stored or name not in wanted:
            where = "the run" if name not in wanted else "the checkpoint"
            raise ValueError(f"{name}: missing in {where}; the checkpoint {place} does not fit")
        if stored[name] != _form(wanted[name]):
            raise ValueError(f"{name}={_form(wanted[name])}: must be {stored[name]}, as in {place}")
    empty = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
    try:
        with orbax_checkpointer() as checkpointer:
            target = {name: leaf for name, leaf in empty.items() if leaf.size}
            read = checkpointer.restore(place.resolve() / _STATE, target)
    except Exception as error:  # whatever orbax and tensorstore raise on what they cannot read
        # Not damage: the files are those that were written.
        raise ValueError(f"run={str(place)!r}: must be readable by orbax: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(words), list({**empty, **read}.values()))


def _words(leaf: Any) -> Any:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _by_path(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by their names, in the tree's order."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _form(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _score(place: Path) -> float:
    try:
        score = json.loads((place / _META).read_text(encoding="utf-8"))["score"]
    except (OSError, ValueError, KeyError):
        return -math.inf
    return score if isinstance(score, float) and math.isfinite(score) else -math.inf


def _digest(file: Path) -> str:
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
