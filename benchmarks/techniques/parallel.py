"""Techniques of several devices."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.techniques.registry import Effort, Result
from benchmarks.timing import Interval


def _scaling_rows(section: str, effort: Effort) -> list[dict[str, Any]]:
    """Return the rows of a section of ``benchmarks.scaling``.

    On CPU by a process of its own, since the number of virtual devices is settled
    when JAX starts; accelerators are there already, and are not shared.
    """
    from benchmarks.scaling import cases
    from benchmarks.scaling import effort as efforts

    if jax.default_backend() != "cpu":
        most = jax.device_count()
        chosen = efforts.QUICK if effort.quick else efforts.FULL
        devices = tuple(count for count in chosen.devices if count <= most)
        return cases.measure_section(section, chosen._replace(devices=devices))  # type: ignore[arg-type]
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
    """Make a measurement of the rows of a section: each one's ratio, but for those of 1.

    Args:
      case: columns that name a row.
      column: of the ratio.
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
