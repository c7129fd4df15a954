"""Record of a run's engine and its arguments, ``engine.json`` in the run directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

from jaxdqn.storage.jsonl import Record, write_json

ENGINE = "engine.json"


def write_engine(directory: Path, record: Record | None) -> None:
    """Write the record of an engine: its name under ``engine``, and its arguments.

    None removes the record.
    """
    if record is None:
        (directory / ENGINE).unlink(missing_ok=True)
    else:
        write_json(directory / ENGINE, record)


def read_engine(directory: str | os.PathLike[str]) -> Record | None:
    """Return the record of the engine; None if the run uses the trainer's programs.

    Raises:
        ValueError: if the file is damaged.
    """
    file = Path(directory) / ENGINE
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: must be the record of an engine: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("engine"), str):
        raise ValueError(f"{file}: must be the record of an engine, with its name as 'engine'")
    return record


def engine_text(record: Record | None) -> str:
    """Return the record as text: ``engine='ray' with actors=2, replay_shards=1``."""
    if record is None:
        return "engine='jit'"
    given = [f"{name}={value}" for name, value in record.items() if name != "engine"]
    return f"engine={record['engine']!r}" + (f" with {', '.join(given)}" if given else "")
