"""Measurements of the techniques at the start of a run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.startup import solve
from benchmarks.techniques.registry import Result, compared
from benchmarks.timing import Effort


def measure_compilation_cache(effort: Effort) -> list[Result]:
    """Measure the start of a run with a filled compilation cache relative to an empty cache."""
    seconds: dict[str, list[float]] = {"empty cache": [], "filled cache": []}
    for index in range(1 if effort.quick else 3):
        with tempfile.TemporaryDirectory() as scratch:
            for name, times in seconds.items():
                out, cache = Path(scratch, f"{name} {index}"), Path(scratch, "cache")
                times.append(solve(out, cache)["first_chunk"])
    return compared(seconds, of="starts")
