"""Records as JSON: one per file, or one per line of a file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]

FILES = {"metrics": "metrics.jsonl", "evaluation": "evaluations.jsonl", "event": "events.jsonl"}
"""File name for each kind of record in a run directory."""


def to_json(record: Record, **options: Any) -> str:
    """Return a record as JSON. NaN and infinity become null, because JSON has neither."""
    return json.dumps(_finite(record), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON atomically: a reader sees either the old or the new file."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8") as opened:
        opened.write(to_json(record, indent=2) + "\n")
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(unfinished, file)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read the records of a JSON lines file, which may be missing; ignore an incomplete last line.

    Raises:
        ValueError: if a line is not JSON.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, 1):
        if line.endswith("\n"):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{file}: line {number} must be JSON: {error}") from error
    return records
