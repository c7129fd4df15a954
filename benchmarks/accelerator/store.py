"""Results of the accelerator benchmark: a file for each cell, and one report of all cells."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import write_json

CELLS = "cells"
REPORT = "report.json"
PICTURE = "rates.png"


class Store:
    """Directory of results. A cell is written as soon as it is measured or has failed."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def write(self, section: str, cell: str, record: Mapping[str, Any]) -> None:
        """Write the record of a cell atomically; it replaces an earlier record."""
        file = self._file(section, cell)
        partial = file.with_suffix(".partial")
        write_json(partial, {"section": section, "cell": cell, **record})
        os.replace(partial, file)

    def read(self, section: str) -> dict[str, dict[str, Any]]:
        """Return the records of a section by cell, in the order of writing."""
        folder = self.directory / CELLS / section
        records = [json.loads(file.read_text()) for file in folder.glob("*.json")]
        records.sort(key=lambda record: record.get("order", 0))
        return {record["cell"]: record for record in records}

    def write_report(self, report: Mapping[str, Any]) -> Path:
        """Write the report of all sections; return its path."""
        file = self.directory / REPORT
        write_json(file, report)
        return file

    def _file(self, section: str, cell: str) -> Path:
        return self.directory / CELLS / section / f"{re.sub(r'[^A-Za-z0-9.]+', '-', cell)}.json"


def results_of(records: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the results of the cells that were measured, by cell."""
    return {name: record["result"] for name, record in records.items() if "result" in record}


def failures_of(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the reasons of the cells that failed, by cell."""
    return {name: record["failed"] for name, record in records.items() if "failed" in record}
