"""Count the GPU launches of one iteration: ``python -m benchmarks.gpu_program``.

XLA compiles each program for an H100, on any machine, and reports its kernels, copies and CUDA
graphs. Nothing is run, so the counts are exact and the times are unknown. Matrix products and
convolutions use default kernels, because selecting the fastest kernels needs the device.

Needs ``pip install 'jaxdqn[gpu-compile]'``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_program.counts import TOTALS
from jaxdqn.cli.flags import parse, run_command

RECORDED = Path("benchmarks/results/gpu-program.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    only: tuple[str, ...] = ()
    """Programs to compile; by default all."""
    loops: bool = False
    """Also print the loops within an iteration."""
    dump: str | None = None
    """Folder for the dumps of XLA for each program: kernels, thunks, HLO."""
    json: str | None = None
    """File for the counts, such as benchmarks/results/gpu-program.json. It keeps its counts of
    programs that are not compiled now."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    # Only the compiler of the CUDA plug-in is used; there is no GPU to initialise.
    os.environ["JAX_PLATFORMS"] = "cpu"
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.gpu_program", description=__doc__)
    from benchmarks.gpu_program.cases import selected
    from benchmarks.gpu_program.compiling import missing_packages
    from benchmarks.gpu_program.measure import count_case
    from benchmarks.report import check_writable, format_table, write_json

    cases = selected(flags.only)
    check_writable(flags.json)
    if reason := missing_packages():
        raise ValueError(f"gpu_program: {reason}")
    found: dict[str, Any] = {}
    for case in cases:
        found[case.name] = count_case(case, Path(flags.dump) if flags.dump else None)
        print(f"{case.name}: {found[case.name]['kernels']} kernels", flush=True)
        if flags.json is not None:
            write_json(flags.json, merged(flags.json, found))
    print(format_table(["program", *TOTALS, "bar", "compile CPU s"], table_rows(found)))
    print(format_table(["program", *(parts := _parts(found))], part_rows(found, parts)))
    if flags.loops:
        print(format_table(["loop", "passes", "kernels a pass"], loop_rows(found)))


def merged(path: str | Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a file of counts, updated with the counts of some programs."""
    from benchmarks.gpu_program.target import NAME
    from benchmarks.report import stamp

    file = Path(path)
    before = json.loads(file.read_text())["programs"] if file.exists() else {}
    versions = stamp()["versions"]
    return {"target": NAME, "versions": versions, "programs": {**before, **found}}


def table_rows(found: Mapping[str, Any]) -> list[list[Any]]:
    """Return the rows of the table of launches."""
    from benchmarks.gpu_program.cases import BARS

    return [
        [name, *(counts[column] for column in TOTALS), BARS.get(name, ""),
         counts["compile_cpu_seconds"]]
        for name, counts in found.items()
    ]  # fmt: skip


def part_rows(found: Mapping[str, Any], parts: Sequence[str]) -> list[list[Any]]:
    """Return the rows of the table of kernels by part."""
    return [[name, *(counts["parts"].get(part, 0) for part in parts)]
            for name, counts in found.items()]  # fmt: skip


def loop_rows(found: Mapping[str, Any]) -> list[list[Any]]:
    """Return the rows of the table of loops."""
    return [
        [f"{name}: {loop['part']}", loop["trip_count"], loop["kernels"]]
        for name, counts in found.items()
        for loop in counts["loops"]
    ]


def _parts(found: Mapping[str, Any]) -> list[str]:
    names = {part for counts in found.values() for part in counts["parts"]}
    return sorted(names, key=lambda part: -sum(c["parts"].get(part, 0) for c in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
