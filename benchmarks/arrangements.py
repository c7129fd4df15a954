"""Compare actors, replay shards and learners on Ray: ``python -m benchmarks.arrangements``.

CartPole on the device with the same network, batch and replay ratio. Each measurement is a run in
its own process. The last row, for scale, is the compiled trainer of one process.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.ray_runs import rate, records_of
from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import MEDIANS, RATIOS, alternating, ratio, spread
from jaxdqn.cli.flags import parse, run_command

_SERVER = ("--actors", "2", "--learners", "2", "--server-mode")
CASES: dict[str, tuple[str, ...]] = {
    "1 actor": ("--actors", "1"),
    "2 actors": ("--actors", "2"),
    "4 actors": ("--actors", "4"),
    "2 actors, 2 shards": ("--actors", "2", "--replay-shards", "2"),
    "2 learners, sync": (*_SERVER, "sync"),
    "2 learners, async": (*_SERVER, "async"),
    "2 learners, async, int8": (*_SERVER, "async", "--compression", "int8"),
    "one program (jit)": ("--engine", "jit"),
}
AGES = ("parameter_age", "sample_age", "gradient_staleness")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    only: tuple[str, ...] = ()
    """Arrangements to measure; by default all."""
    rows: int = 60_000
    """Rows of a measurement."""
    rounds: int = 3
    """Measurements of each arrangement, alternating."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/arrangements.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.arrangements", description=__doc__)
    for option in ("rows", "rounds"):
        if getattr(flags, option) < 1:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least 1")
    for name in flags.only:
        if name not in CASES:
            raise ValueError(f"only={name!r}: must be one of {', '.join(CASES)}")
    check_writable(flags.json)
    names = flags.only or tuple(CASES)
    report: dict[str, Any] = {"stamp": stamp(), "flags": dataclasses.asdict(flags)}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for name in alternating(names, flags.rounds):
        measured[name].append(measure(CASES[name], flags.rows))
    base = [each["gradient_steps_per_second"] for each in measured[names[0]]]
    report["cases"] = {}
    for name, results in measured.items():
        columns = {key: [each[key] for each in results] for key in results[0]}
        report["cases"][name] = {key: spread(values) for key, values in columns.items()}
        over = ratio(columns["gradient_steps_per_second"], base)
        report["cases"][name]["over_first"] = over
    print(describe(report["stamp"]))
    print(f"{MEDIANS}; {RATIOS}")
    keys = ("gradient_steps_per_second", "over_first", "rows_per_second", *AGES)
    rows = [(name, *(case.get(key, "") for key in keys)) for name, case in report["cases"].items()]
    print(format_table(("arrangement", *keys), rows))
    if flags.json is not None:
        write_json(flags.json, report)
        print(f"measurements in {flags.json}")


def measure(case: Sequence[str], rows: int) -> dict[str, float]:
    """Run an arrangement once; return its rates, and the ages of the data that it learns from.

    Args:
        case: options of ``jaxdqn run`` for the arrangement, as in ``CASES``.
        rows: number of rows of the run.
    """
    options = (
        *case,
        *("--replay", "prioritized", "--total-rows", str(rows), "--log-every", str(rows // 6)),
        *("--eval-episodes", "1"),
    )
    records = records_of(options, seconds=600)
    ages = {key: _mean([each[key] for each in records[1:]]) for key in AGES if key in records[1]}
    rates = {f"{key}_per_second": rate(records, key) for key in ("gradient_steps", "rows")}
    return {**rates, **ages}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())
