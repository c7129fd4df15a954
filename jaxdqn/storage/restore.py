"""Read checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxdqn.storage.checkpoint import (
    CHECKPOINTS,
    MANIFEST,
    META,
    SCHEMA,
    STATE,
    Damaged,
    checkpoint_path,
    digest,
    steps_of,
)
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.params import orbax_checkpointer
from jaxdqn.storage.state import describe_leaf, key_data_of, leaves_by_path
from jaxdqn.types import PyTree


class Restored(NamedTuple):
    """A checkpoint that was read and found whole."""

    step: int
    state: PyTree
    """NumPy leaves in the structure asked for"""
    meta: Record
    skipped: tuple[str, ...]
    """Newer checkpoints that are damaged, a line each."""
    damaged: tuple[Path, ...]
    """Where those are."""


def read_meta(place: Path) -> Record:
    """Verify a checkpoint and return what it says of itself.

    Raises:
        Damaged: if a file is missing or not what was written.
        ValueError: if it was written under another schema.
    """
    try:
        lines = (place / MANIFEST).read_text(encoding="utf-8").splitlines()
        listed = [line.split("  ", 1) for line in lines]
        if not listed or listed[-1][-1] != META:
            raise Damaged(f"{MANIFEST}: cut short")
        for recorded, name in listed:
            if digest(place / name) != recorded:
                raise Damaged(f"{name}: not what was written")
        meta = json.loads((place / META).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Damaged(f"{Path(error.filename or place).name}: {error.strerror}") from error
    except OSError as error:
        # Permission, too many files, a network: the checkpoint may be whole.
        raise ValueError(f"run={str(place)!r}: must be readable: {error}") from error
    except (ValueError, UnicodeError) as error:
        raise Damaged(f"{MANIFEST}: {error}") from error
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
    directory, skipped = run / CHECKPOINTS, []
    damaged: list[Path] = []
    for step in steps_of(directory):
        place = checkpoint_path(run, step)
        try:
            meta = read_meta(place)
            if check is not None:
                check(meta)
            if finite and meta["not_finite"]:
                continue
            state = _read_state(place, meta, target(meta))
        except Damaged as damage:
            skipped.append(f"checkpoint {place} is damaged: {damage}")
            damaged.append(place)
            continue
        return Restored(step, state, meta, tuple(skipped), tuple(damaged))
    if skipped:
        raise ValueError(
            f"run={str(run)!r}: must hold a checkpoint that is whole; {'; '.join(skipped)}. "
            f"move {directory} away to start the run anew"
        )
    return None


def newest_whole(run: Path) -> Path | None:
    """Return the newest checkpoint that is whole, if there is one."""
    for step in steps_of(run / CHECKPOINTS):
        try:
            read_meta(checkpoint_path(run, step))
        except (Damaged, ValueError):
            continue
        return checkpoint_path(run, step)
    return None


def _read_state(place: Path, meta: Record, target: PyTree) -> PyTree:
    words = jax.eval_shape(key_data_of, target)
    wanted = leaves_by_path(words)
    stored = meta["leaves"]
    for name in {**wanted, **stored}:
        if name not in stored or name not in wanted:
            where = "the run" if name not in wanted else "the checkpoint"
            raise ValueError(f"{name}: missing in {where}; the checkpoint {place} does not fit")
        if stored[name] != describe_leaf(wanted[name]):
            raise ValueError(
                f"{name}={describe_leaf(wanted[name])}: must be {stored[name]}, as in {place}"
            )
    empty = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
    try:
        with orbax_checkpointer() as checkpointer:
            target = {name: leaf for name, leaf in empty.items() if leaf.size}
            read = checkpointer.restore(place.resolve() / STATE, target)
    except Exception as error:  # whatever orbax and tensorstore raise on what they cannot read
        # Not damage: the files are those that were written.
        raise ValueError(f"run={str(place)!r}: must be readable by orbax: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(words), list({**empty, **read}.values()))
