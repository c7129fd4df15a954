"""Measurements of the techniques over several devices and learners."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.techniques.registry import Result
from benchmarks.timing import Effort, Interval


def _scaling_rows(section: str, effort: Effort) -> list[dict[str, Any]]:
    """Return the rows of a section of ``benchmarks.scaling``.

    On CPU they are measured in a separate process, since the number of virtual devices is fixed
    when JAX starts. Accelerators are used in this process, since processes cannot share them.
    """
    from benchmarks.scaling import plan as plans
    from benchmarks.scaling.cases import measure_section

    if jax.default_backend() != "cpu":
        plan = plans.QUICK if effort.quick else plans.FULL
        devices = tuple(count for count in plan.devices if count <= jax.device_count())
        return measure_section(section, plan._replace(devices=devices))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "scaling.json"
        command = [sys.executable, "-m", "benchmarks.scaling", "--sections", section]
        command += ["--json", str(file), "--virtual-devices", "2"]
        command += ["--quick"] if effort.quick else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text())[section]


def measure_scaled(
    section: str, case: Sequence[str], against: str, column: str, of: str
) -> Callable[[Effort], list[Result]]:
    """Return a measurement that takes its results from a section of ``benchmarks.scaling``.

    The baseline, a ratio of exactly 1, is not a result.

    Args:
        section: section of the benchmark.
        case: columns that name a row.
        against: name of the baseline.
        column: column of the ratio.
        of: unit of work.
    """

    def measure(effort: Effort) -> list[Result]:
        results = []
        for row in _scaling_rows(section, effort):
            speed_up = row[column]
            if isinstance(speed_up, Mapping):
                speed_up = Interval(**speed_up)
            if tuple(speed_up) != (1.0, 1.0, 1.0):
                name = ", ".join(f"{name} {row[name]}" if name in "DP" else str(row[name])
                                 for name in case)  # fmt: skip
                results.append(Result(name, against, speed_up, of))
        return results

    return measure
