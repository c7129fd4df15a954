"""The files that a run leaves behind, and how they are read again.

``config.json``, ``summary.json``, ``metrics.jsonl`` (a line a chunk),
``evaluations.jsonl``, ``curve.png``, and the parameters ``best/`` and ``last/``.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdqn.config import Config, from_dict, to_dict
from jaxdqn.loggers import to_json

if TYPE_CHECKING:
    # The command line looks at directories before it waits for JAX.
    from jaxdqn.types import Params

CONFIG, SUMMARY, CURVE = "config.json", "summary.json", "curve.png"
PARAMETERS = ("best", "last")
_LOCK = ".lock"


class RunFailed(RuntimeError):
    """A run cannot go on; what it wrote until then is whole."""


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


def create(path: str | os.PathLike[str], config: Config, stack: ExitStack) -> Path:
    """Make a run directory, lock it, and write the configuration into it.

    Args:
        stack: holds the lock.

    Raises:
        ValueError: if something is there already, or it cannot be written.
    """
    path = check_unused(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock(path, stack)
        check_unused(path)
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


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, at once: a reader sees the old file or the new one."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8") as opened:
        opened.write(to_json(record, indent=2) + "\n")
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(unfinished, file)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read the records of a JSON lines file; a last line cut short is left out."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def orbax_checkpointer() -> Any:
    """Make orbax's checkpointer, for one process: it does not wait for others there may be."""
    import jax
    import orbax.checkpoint as ocp  # slow to import

    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="alone",
    )
    if jax.process_count() == 1:
        alone = ocp.options.MultiprocessingOptions()
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def save_params(path: Path, params: Params) -> None:
    """Write parameters, in place of older ones, and return when they are there."""
    older = path.with_name(f".{path.name}.older")
    shutil.rmtree(older, ignore_errors=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with orbax_checkpointer() as checkpointer:
        checkpointer.save(unfinished.resolve(), params)
        checkpointer.wait_until_finished()
    if path.exists():
        path.rename(older)
    unfinished.rename(path)
    shutil.rmtree(older, ignore_errors=True)


def restore_params(path: Path, target: Params) -> Params:
    """Read parameters onto the default device.

    Args:
        path: where ``save_params`` wrote.
        target: the shapes and dtypes, as ``jax.eval_shape`` gives them.

    Raises:
        ValueError: if they are not there, or of another structure or shape.
    """
    import jax

    if not path.is_dir():
        raise ValueError(f"run={str(path.parent)!r}: must hold the parameters {path.name}/")
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), target
    )
    with orbax_checkpointer() as checkpointer:
        return checkpointer.restore(path.resolve(), target)


def unwritable(path: Path, error: OSError) -> ValueError:
    """Return what to raise for a run directory that cannot be written."""
    return ValueError(f"out={str(path)!r}: must be writable: {error.strerror}")
