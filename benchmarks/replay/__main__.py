"""Measure uniform and prioritised replays: ``python -m benchmarks.replay``.

If flashbax is installed (``pip install flashbax``), its replays are measured too.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.replay.cases import (
    PARTS,
    ROWS,
    E,
    Replays,
    bytes_per_transition,
    flashbax_is_installed,
    make_flashbax_replays,
    make_replays,
    prepare,
)
from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import MEDIANS, RATIOS, alternate, compile_cold, microseconds, ratio
from jaxdqn.cli.flags import parse, run_command

HEADERS = ["rows", "capacity", "B", "replay", *PARTS, "flashbax", "over flashbax"]
BYTES = ["rows", "uniform", "prioritised", "pairs, unpacked", "of them"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    quick: bool = False
    """The smallest sizes, measured briefly: a first look, not a measurement."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Kinds of rows, by the first letters of their names."""
    capacities: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7)
    """Rows of a replay; the largest capacities are skipped for large rows."""
    batches: tuple[int, ...] = (32, 128, 512, 4096)
    """Batch sizes."""
    parts: bool = True
    """Measure add, draw and update also separately, not only together."""
    rounds: int = 9
    """Rounds of measurement; each measures every case once."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/replay.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.replay", description=__doc__)
    check_writable(flags.json)
    if flags.quick:
        flags = dataclasses.replace(flags, capacities=(10**4,), batches=(32,), rounds=3)
    _check(flags)
    compile_cold()
    stamped = stamp()
    print(describe(stamped))
    print(
        f"microseconds of adding {E} rows (add), drawing B rows (draw), writing B priorities "
        f"(update), and all three in one loop (together); {MEDIANS}; {RATIOS}"
    )
    if not flashbax_is_installed():
        print("flashbax is not installed: it is not measured")
    sizes = bytes_per_transition()
    report: dict[str, Any] = {"stamp": stamped, "bytes": sizes, "times": []}
    print("\nbytes per transition")
    print(format_table(BYTES, [[row[name] for name in BYTES] for row in sizes]))
    print()
    for row in measure(flags):
        report["times"].append(row)
        if sys.stderr.isatty():
            print(row["rows"], row["capacity"], row["B"], row["replay"], file=sys.stderr)
        if flags.json is not None:
            write_json(flags.json, report)
    table = [[row.get(name, "") for name in HEADERS] for row in report["times"]]
    print(format_table(HEADERS, table))


def _check(flags: Flags) -> None:
    for name in ("capacities", "batches"):
        for value in getattr(flags, name):
            if value < 32 or (name == "capacities" and value % 10):
                raise ValueError(f"{name}={value}: must be at least 32; capacities multiples of 10")
    if flags.rounds < 1:
        raise ValueError(f"rounds={flags.rounds}: must be at least 1")
    for start in flags.rows:
        if not any(name.startswith(start) for name in ROWS):
            raise ValueError(f"rows={start!r}: must be the start of one of {', '.join(ROWS)}")


def measure(flags: Flags) -> Iterator[dict[str, Any]]:
    """Measure every kind of rows, capacity, batch and replay that the flags select."""
    for name, kind in ROWS.items():
        if not any(name.startswith(start) for start in flags.rows):
            continue
        for capacity in flags.capacities:
            for batch in flags.batches:
                if capacity > kind.max_capacity or batch > capacity:
                    continue
                for prioritized in (False, True):
                    sizes = {"rows": name, "capacity": capacity, "B": batch}
                    sizes["replay"] = "prioritised" if prioritized else "uniform"
                    makers = {"jaxdqn": make_replays}
                    if flashbax_is_installed():
                        makers["flashbax"] = make_flashbax_replays
                    replays = {
                        library: make(kind, capacity, batch, prioritized=prioritized)
                        for library, make in makers.items()
                    }
                    yield {**sizes, **_measure_one(replays, batch, flags)}


def _measure_one(replays: dict[str, Replays], batch: int, flags: Flags) -> dict[str, Any]:
    duration = 0.02 if flags.quick else 0.1
    repetitions = 20 if flags.quick else 200
    parts = PARTS if flags.parts else ("together",)
    cases = {
        part: prepare(replays["jaxdqn"], part, batch, repetitions)
        for part in parts
        if part != "update" or replays["jaxdqn"].update is not None
    }
    if "flashbax" in replays:
        cases["flashbax"] = prepare(replays["flashbax"], "together", batch, repetitions)
    times = alternate(cases, rounds=flags.rounds, seconds=duration)
    row: dict[str, Any] = {name: microseconds(seconds) for name, seconds in times.items()}
    if "flashbax" in replays:
        row["over flashbax"] = ratio(times["together"], times["flashbax"])
    return row


if __name__ == "__main__":
    sys.exit(main())
