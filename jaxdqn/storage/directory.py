"""Run directory: create it, lock it, and read its configuration.

It contains ``config.json``, ``start.json`` (preset, machine and versions), ``parts.json``
(environment and custom parts), ``engine.json`` (if the run has another engine than the trainer),
``summary.json``, ``metrics.jsonl`` (one line per chunk), ``evaluations.jsonl``, ``events.jsonl``,
``curve.png``, the parameters ``best/`` and ``last/``, and ``checkpoints/``.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxdqn import __version__
from jaxdqn.config.config import Config, from_dict, to_dict
from jaxdqn.config.former_names import current_names
from jaxdqn.errors import suggest
from jaxdqn.storage.jsonl import write_json
from jaxdqn.storage.loss_record import register_recorded_loss

CONFIG, SUMMARY, CURVE = "config.json", "summary.json", "curve.png"
PARTS, START = "parts.json", "start.json"
LOCK = ".lock"
_OLDER = {"reset": "every-step"}
"""Options that the configuration of an older run lacks, and the value with which that run was
trained, where this differs from the default."""


def path_part(name: str) -> str:
    """Convert a name such as ``gymnasium:ALE/Pong-v5`` to a single path component."""
    return re.sub(r"[^\w.=+-]+", "-", name)


def check_unused(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if it does not exist or is an empty directory.

    Raises:
        ValueError: if ``path`` is in use already, cannot be accessed, or is not valid UTF-8.
    """
    path = Path(path)
    check_utf8("out", path)
    try:
        used = path.exists() and (
            not path.is_dir() or any(not _is_leftover(entry.name) for entry in path.iterdir())
        )
    except OSError as error:
        raise unwritable_error(path, error) from error
    if used:
        raise ValueError(
            f"out={str(path)!r}: must be a new or an empty directory; --resume continues a run"
        )
    return path


def claim(base: Path) -> Path:
    """Create and return a new directory: ``base``, or the first free of ``base-2``, ``base-3``, ...

    Each name is tried with an exclusive ``mkdir``, so two processes never get the same directory.

    Raises:
        ValueError: if the directory cannot be created, or its path is not valid UTF-8.
    """
    check_utf8("out", base)
    path, count = base, 1
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError as error:
            if not path.parent.is_dir():
                raise unwritable_error(path, error) from error
            count += 1
            path = base.with_name(f"{base.name}-{count}")
        except OSError as error:
            raise unwritable_error(path, error) from error
        else:
            return path


def is_run(path: str | os.PathLike[str]) -> bool:
    """Return True if ``path`` is the directory of a started run."""
    return (Path(path) / CONFIG).is_file()


def _is_leftover(name: str) -> bool:
    """Return True if a run that stopped while it created its directory left this file behind."""
    return name == LOCK or name.startswith(f".{CONFIG}.")


def back_up_and_empty(file: Path) -> None:
    """Copy a file to an unused name and truncate it; the file may be open for appending."""
    count = 1
    while (backup := file.with_name(f"{file.name}.before-{count}")).exists():
        count += 1
    shutil.copyfile(file, backup)
    os.truncate(file, 0)


def create(
    path: str | os.PathLike[str],
    config: Config,
    stack: ExitStack,
    parts: Mapping[str, Any] | None = None,
) -> Path:
    """Create a run directory, lock it, and write the configuration into it.

    Args:
        path: directory to create.
        config: configuration of the run.
        stack: exit stack that releases the lock when it is closed.
        parts: record of the custom parts, as made by ``storage.parts``.

    Raises:
        ValueError: if the directory is in use already, or cannot be written.
    """
    path = check_unused(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock(path, stack)
        check_unused(path)  # again: another run may have started before the lock was taken
        if parts:
            # Write this first: a directory with config.json counts as a run.
            write_json(path / PARTS, dict(parts))
        write_json(path / CONFIG, to_dict(config))
    except OSError as error:
        raise unwritable_error(path, error) from error
    return path


def lock(path: Path, stack: ExitStack) -> None:
    """Lock the run directory for this process, until ``stack`` is closed or the process exits.

    Raises:
        ValueError: if another process holds the lock.
        OSError: if the directory cannot be written.
    """
    file = stack.enter_context((path / LOCK).open("a+", encoding="utf-8"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise ValueError(f"out={str(path)!r}: must not be in use; {holder} runs there") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()


def lock_host(run: str | os.PathLike[str]) -> str | None:
    """Return the machine of the process that locked a run directory last; None if unknown."""
    try:
        text = (Path(run) / LOCK).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    _, found, host = text.strip().partition(" on ")  # as ``lock`` has written it
    return host if found else None


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read the configuration of a run.

    Raises:
        ValueError: if ``path`` is not a run directory, or its configuration is invalid.
    """
    check_utf8("run", path)
    register_recorded_loss(Path(path) / PARTS)
    try:
        return read_config_file(Path(path) / CONFIG, _OLDER)
    except OSError as error:
        raise ValueError(
            f"run={str(path)!r}: must be a run directory; {CONFIG}: {error.strerror}"
        ) from error


def read_config_file(file: Path, absent: Mapping[str, Any] = MappingProxyType({})) -> Config:
    """Read a configuration from a JSON file.

    Args:
        file: JSON file with options by name.
        absent: values for options that the file lacks, in place of their defaults.

    Raises:
        ValueError: if the file does not hold a valid configuration.
        OSError: if the file cannot be read.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: must be a readable configuration: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: must be a JSON object")
    known = [field.name for field in dataclasses.fields(Config)]
    for name in current_names(values):
        if name not in known:
            raise ValueError(
                f"{file}: must be of this version of jaxdqn ({__version__}) or of an older one; "
                f"there is no field {name!r}; nearest: {suggest(name, known)}"
            )
    try:
        return from_dict({**absent, **values})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def check_utf8(name: str, path: str | os.PathLike[str]) -> None:
    """Check that an absolute path is valid UTF-8, because records and checkpoints contain it.

    Raises:
        ValueError: if the absolute path is not UTF-8, for example in the name of a parent
            directory.
    """
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}={absolute!r}: must be a path in UTF-8") from None


def unwritable_error(path: Path, error: OSError) -> ValueError:
    """Return the error to raise for a run directory that cannot be written."""
    return ValueError(f"out={str(path)!r}: must be writable: {error.strerror}")
