"""Measure replays, uniform and prioritised, and flashbax's beside them where it is installed.

``python -m benchmarks.replay``; ``pip install flashbax`` for the peer.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.replay.cases import (
    PARTS,
    ROWS,
    Replays,
    bytes_per_transition,
    own,
    peer,
    peer_is_installed,
    prepare,
)
from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import OF_MEDIAN, Interval, alternate, compile_cold, ratio, spread
from jaxdqn.cli.flags import parse, run_command

HEADERS = ["rows", "capacity", "B", "replay", *PARTS, "flashbax", "over flashbax"]
BYTES = ["rows", "uniform", "prioritised", "pairs, unpacked", "of them"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    quick: bool = False
    """The smallest sizes, briefly: figures to look at, not to keep."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Kinds of rows, by the beginning of their names."""
    capacities: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7)
    """Rows that a replay holds; kinds of large rows stop before the largest."""
    batches: tuple[int, ...] = (32, 128, 512, 4096)
    """Rows of a batch."""
    parts: bool = True
    """Measure add, draw and update alone too, not only all together."""
    rounds: int = 9
    """Alternations."""
    json: str | None = None
    """File to write the measurements to, such as benchmarks/results/replay.json."""


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
        f"microseconds, medians (least-greatest): adding {10} rows, drawing B, writing B "
        f"priorities, and all of it in one loop; of ratios the median and {OF_MEDIAN}"
    )
    if not peer_is_installed():
        print("flashbax is not installed: it is not measured")
    sizes = bytes_per_transition()
    report: dict[str, Any] = {"stamp": stamped, "bytes": sizes, "times": []}
    print("\nbytes of a transition")
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
                raise ValueError(f"{name}={value}: must be 32 at least, capacities multiples of 10")
    if flags.rounds < 1:
        raise ValueError(f"rounds={flags.rounds}: must be at least 1")
    for start in flags.rows:
        if not any(name.startswith(start) for name in ROWS):
            raise ValueError(f"rows={start!r}: must begin one of {', '.join(ROWS)}")


def measure(flags: Flags) -> Iterator[dict[str, Any]]:
    """Measure every kind, capacity, batch and replay that the flags name."""
    for name, kind in ROWS.items():
        if not any(name.startswith(start) for start in flags.rows):
            continue
        for capacity in flags.capacities:
            for batch in flags.batches:
                if capacity > kind.most or batch > capacity:
                    continue
                for prioritized in (False, True):
                    what = {"rows": name, "capacity": capacity, "B": batch}
                    what["replay"] = "prioritised" if prioritized else "uniform"
                    made = {"own": own(kind, capacity, batch, prioritized=prioritized)}
                    if peer_is_installed():
                        made["flashbax"] = peer(kind, capacity, batch, prioritized=prioritized)
                    yield {**what, **_measure_one(made, batch, flags)}


def _measure_one(made: dict[str, Replays], batch: int, flags: Flags) -> dict[str, Any]:
    seconds = 0.02 if flags.quick else 0.1
    repetitions = 20 if flags.quick else 200
    parts = PARTS if flags.parts else ("together",)
    cases = {
        part: prepare(made["own"], part, batch, repetitions)
        for part in parts
        if part != "update" or made["own"].update is not None
    }
    if "flashbax" in made:
        cases["flashbax"] = prepare(made["flashbax"], "together", batch, repetitions)
    times = alternate(cases, rounds=flags.rounds, seconds=seconds)
    row: dict[str, Any] = {
        name: Interval(*(1e6 * value for value in spread(took))) for name, took in times.items()
    }
    if "flashbax" in made:
        row["over flashbax"] = ratio(times["together"], times["flashbax"])
    return row


if __name__ == "__main__":
    sys.exit(main())
