"""Commands that repeat runs."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from jaxdqn.monitoring.run_files import RunFiles
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.loss_record import LOSS
from jaxdqn.storage.parts import references_of


def lines_of(run: RunFiles) -> list[str]:
    """Return the command that repeats a run, after comments on what the command needs.

    The command takes the configuration from ``NAME.json`` in the current directory. A run with a
    part that a Python program passed as an object has a comment instead of a command.
    """
    objects = objects_of(run)
    if objects:
        return [
            f"# {run.name} cannot be repeated from the command line: its {', '.join(objects)} "
            f"{'is an object' if len(objects) == 1 else 'are objects'} of a Python program"
        ]
    return [*_comments(run), shlex.join(["jaxdqn", "run", *arguments_of(run)])]


def objects_of(run: RunFiles) -> list[str]:
    """Return the names of the parts that no flag can name: objects and registered losses."""
    objects = [name for name, part in run.parts.items() if part is None]
    return [*objects, *(["loss"] if LOSS in run.parts else [])]


def arguments_of(run: RunFiles) -> list[str]:
    """Return the arguments of ``jaxdqn run`` that repeat a run."""
    arguments = ["--from", f"{run.name}.json"]
    references = references_of(run.parts)
    directories = _directories(run)
    for name, (reference, directory) in references.items():
        arguments += [f"--{name}", _from_first(reference, directory, directories[0])]
    arguments += _engine_arguments(run.engine or {})
    if _has_virtual_devices(run):
        arguments += ["--virtual-devices", str(run.config.devices)]
    return [*arguments, "--out", f"again/{run.name}"]


def _directories(run: RunFiles) -> list[str]:
    return list(dict.fromkeys(directory for _, directory in references_of(run.parts).values()))


def _from_first(reference: str, directory: str, first: str) -> str:
    """Return a reference that is valid in the directory ``first``."""
    target, _, function = reference.rpartition(":")
    if directory == first or not target.endswith(".py"):
        return reference
    return f"{os.path.join(directory, target)}:{function}"


def _engine_arguments(engine: Record) -> list[str]:
    arguments = []
    for name, value in engine.items():
        text = "..".join(map(str, value)) if isinstance(value, list) else str(value)
        arguments += [f"--{name.replace('_', '-')}", text]
    return arguments


def _has_virtual_devices(run: RunFiles) -> bool:
    """Return True if one process had several CPU devices, which are then virtual."""
    on_cpu = run.identity.get("device_kind") == "cpu" and run.identity.get("processes", 1) == 1
    return on_cpu and run.config.devices > 1


def _comments(run: RunFiles) -> list[str]:
    comments = []
    first, *others = _directories(run) or [""]
    if first:
        comments.append(f"# in {Path(first)}, which has the own parts of {run.name}")
    comments += [f"# with {other} on PYTHONPATH" for other in others]
    processes = run.identity.get("processes", 1)
    if processes > 1:
        comments.append(f"# in each of {processes} processes, with --coordinator, --num-processes "
                        "and --process-id")  # fmt: skip
    return comments
