"""Files of a run directory that a report shows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from jaxdqn.config.config import Config
from jaxdqn.config.presets import PRESETS
from jaxdqn.storage.directory import START, SUMMARY, read_config
from jaxdqn.storage.engine_record import read_engine
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.parts import read_parts


class RunFiles(NamedTuple):
    """Content of a run directory."""

    path: Path
    config: Config
    summary: Record | None
    """Content of ``summary.json``; None until the run has finished."""
    parts: Record
    """Content of ``parts.json``."""
    engine: Record | None = None
    """Content of ``engine.json``; None if the run uses the trainer's programs."""
    start: Record | None = None
    """Content of ``start.json``; None in a run of an older version."""

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return self.path.resolve().name

    @property
    def identity(self) -> Record:
        """Fields that are known when a run starts: preset, devices, machine and versions."""
        return self.summary or self.start or {}

    @property
    def preset(self) -> str | None:
        """Name of the preset; None if this version does not have it."""
        name = self.identity.get("preset")
        return name if name in PRESETS else None


def read_run(run: str | os.PathLike[str]) -> RunFiles:
    """Read the files of a run.

    Raises:
        ValueError: if it is not a run directory, or a file in it cannot be read.
    """
    path, config = Path(run), read_config(run)
    return RunFiles(
        path, config, _read(path / SUMMARY), read_parts(run), read_engine(run), _read(path / START)
    )


def _read(file: Path) -> Record | None:
    try:
        content: Record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{file}: must be JSON: {error}") from error
    return content
