"""Verify and read checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxdqn import __version__
from jaxdqn.storage.checkpoint import (
    CHECKPOINTS,
    MANIFEST,
    META,
    SCHEMA,
    STATE,
    DamagedCheckpoint,
    checkpoint_path,
    digest,
    steps_of,
)
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.params import orbax_checkpointer
from jaxdqn.storage.state import describe_leaf, leaves_by_path, with_key_data
from jaxdqn.types import PyTree


class Restored(NamedTuple):
    """Content of an intact checkpoint."""

    step: int
    state: PyTree
    """NumPy leaves in the requested structure; keys as key data"""
    meta: Record
    skipped: tuple[str, ...]
    """One line of text for each newer, damaged checkpoint."""
    damaged: tuple[Path, ...]
    """Paths of these damaged checkpoints."""


def read_meta(path: Path) -> Record:
    """Verify the files of a checkpoint and return its ``meta``.

    Raises:
        DamagedCheckpoint: if a file is missing or was altered.
        ValueError: if the checkpoint cannot be read, or has a different schema.
    """
    try:
        lines = (path / MANIFEST).read_text(encoding="utf-8").splitlines()
        listed = [line.split("  ", 1) for line in lines]
        if not listed or listed[-1][-1] != META:
            raise DamagedCheckpoint(f"{MANIFEST}: truncated")
        for recorded, name in listed:
            if digest(path / name) != recorded:
                raise DamagedCheckpoint(f"{name}: does not match its checksum")
        meta = json.loads((path / META).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        name = Path(error.filename or path).name
        raise DamagedCheckpoint(f"{name}: {error.strerror}") from error
    except OSError as error:
        # Permissions, too many open files, a network error: the checkpoint may be intact.
        raise ValueError(f"run={str(path)!r}: must be readable: {error}") from error
    except (ValueError, UnicodeError) as error:
        raise DamagedCheckpoint(f"{MANIFEST}: {error}") from error
    if meta["schema"] != SCHEMA:
        raise ValueError(
            f"schema={meta['schema']}: the checkpoint {path} must be of schema {SCHEMA}, "
            f"which this version of jaxdqn ({__version__}) reads"
        )
    return meta


def read_newest(
    run: Path,
    target: Callable[[Record], PyTree],
    *,
    check: Callable[[Record], None] | None = None,
    finite: bool = False,
) -> Restored | None:
    """Read the newest intact checkpoint.

    Return None if the run has no finished checkpoint, or none with finite values if ``finite``.

    Args:
        run: run directory.
        target: function that maps the meta of a checkpoint to the shapes and dtypes of its state.
            Typed keys are read as key data.
        check: function that raises ``ValueError`` if the meta of a checkpoint belongs to another
            run.
        finite: True to skip checkpoints with non-finite values.

    Raises:
        ValueError: if no checkpoint can be used and some are damaged, or if the newest intact one
            does not fit ``target``.
    """
    directory, skipped = run / CHECKPOINTS, []
    damaged: list[Path] = []
    for step in steps_of(directory):
        path = checkpoint_path(run, step)
        try:
            meta = read_meta(path)
            if check is not None:
                check(meta)
            if finite and meta["not_finite"]:
                continue
            state = _read_state(path, meta, target(meta))
        except DamagedCheckpoint as damage:
            skipped.append(f"checkpoint {path} is damaged: {damage}")
            damaged.append(path)
            continue
        return Restored(step, state, meta, tuple(skipped), tuple(damaged))
    if skipped:
        raise ValueError(
            f"run={str(run)!r}: must hold an intact checkpoint; {'; '.join(skipped)}. "
            f"move {directory} away to restart the run from the beginning"
        )
    return None


def newest_intact(run: Path) -> Path | None:
    """Return the path of the newest intact checkpoint; None if there is none."""
    for step in steps_of(run / CHECKPOINTS):
        try:
            read_meta(checkpoint_path(run, step))
        except (DamagedCheckpoint, ValueError):
            continue
        return checkpoint_path(run, step)
    return None


def _read_state(path: Path, meta: Record, target: PyTree) -> PyTree:
    """Read the state of a checkpoint: NumPy leaves in the structure of ``target``."""
    shapes = jax.eval_shape(with_key_data, target)
    wanted = leaves_by_path(shapes)
    stored = meta["leaves"]
    for name in {**wanted, **stored}:
        if name not in stored or name not in wanted:
            where = "the run" if name not in wanted else "the checkpoint"
            raise ValueError(f"{name}: missing in {where}; the checkpoint {path} does not fit")
        if stored[name] != describe_leaf(wanted[name]):
            raise ValueError(
                f"{name}={describe_leaf(wanted[name])}: must be {stored[name]}, as in {path}"
            )
    # Arrays without elements are not stored, so these are the final values.
    empty = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
    try:
        with orbax_checkpointer() as checkpointer:
            target = {name: leaf for name, leaf in empty.items() if leaf.size}
            read = checkpointer.restore(path.resolve() / STATE, target)
    except Exception as error:  # orbax and tensorstore raise many types
        # This is not damage, because the checksums have shown that the files are intact.
        raise ValueError(f"run={str(path)!r}: must be readable by orbax: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(shapes), list({**empty, **read}.values()))
