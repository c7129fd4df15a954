"""The files that a run leaves behind, and how they are read again.

``config.json``, ``parts.json`` (if the run has parts of the user's own), ``summary.json``,
``metrics.jsonl`` (a line a chunk), ``evaluations.jsonl``, ``curve.png``, and the parameters
``best/`` and ``last/``.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jaxdqn.config.config import Config, from_dict, to_dict
from jaxdqn.storage.jsonl import write_json

CONFIG, SUMMARY, CURVE = "config.json", "summary.json", "curve.png"
PARTS = "parts.json"
_LOCK = ".lock"


def check_unused(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if a run may write there: it is absent, or an empty directory.

    Raises:
        ValueError: if something is there already.
    """
    path = Path(path)
    try:
        used = path.exists() and (
            not path.is_dir() or any(not _is_ours(entry.name) for entry in path.iterdir())
        )
    except OSError as error:
        raise unwritable(path, error) from error
    if used:
        raise ValueError(f"out={str(path)!r}: must be a new or an empty directory")
    return path


def is_run(path: str | os.PathLike[str]) -> bool:
    """Say whether a run has begun there."""
    return (Path(path) / CONFIG).is_file()


def _is_ours(name: str) -> bool:
    """Say whether a file is one that a run which had hardly begun left."""
    return name == _LOCK or name.startswith(f".{CONFIG}.")


def put_away(file: Path) -> None:
    """Copy a file to a name that is free and empty it; it may be open for appending."""
    count = 1
    while (aside := file.with_name(f"{file.name}.before-{count}")).exists():
        count += 1
    shutil.copyfile(file, aside)
    os.truncate(file, 0)


def create(
    path: str | os.PathLike[str],
    config: Config,
    stack: ExitStack,
    parts: Mapping[str, Any] | None = None,
) -> Path:
    """Make a run directory, lock it, and write the configuration into it.

    Args:
        stack: holds the lock.
        parts: record of the run's own parts, as ``storage.parts`` makes it.

    Raises:
        ValueError: if something is there already, or it cannot be written.
    """
    path = check_unused(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock(path, stack)
        check_unused(path)
        if parts:
            # Before the configuration, which makes the directory one of a run.
            write_json(path / PARTS, dict(parts))
        write_json(path / CONFIG, to_dict(config))
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def lock(path: Path, stack: ExitStack) -> None:
    """Hold the run directory for this process until ``stack`` is left, or the process ends.

    Raises:
        ValueError: if another process holds it.
        OSError: if it cannot be written.
    """
    file = stack.enter_context((path / _LOCK).open("a+", encoding="utf-8"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise ValueError(f"out={str(path)!r}: must not be in use; {holder} runs there") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read the configuration of a run.

    Raises:
        ValueError: if there is no run directory, or its configuration is refused.
    """
    try:
        return read_config_file(Path(path) / CONFIG)
    except OSError as error:
        raise ValueError(
            f"run={str(path)!r}: must be a run directory; {CONFIG}: {error.strerror}"
        ) from error


def read_config_file(file: Path) -> Config:
    """Read a configuration.

    Raises:
        ValueError: if it is no configuration, or is refused.
        OSError: if it cannot be read.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: must be a readable configuration: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: must be a JSON object")
    return from_dict(values)


def unwritable(path: Path, error: OSError) -> ValueError:
    """Return what to raise for a run directory that cannot be written."""
    return ValueError(f"out={str(path)!r}: must be writable: {error.strerror}")
