"""Measure rows/s on Ray by the number of actors: ``python -m benchmarks.actors``.

Each measurement is a run of ``jaxdqn run --engine ray`` in its own process. Its rows/s are measured
between two records, so they exclude the start of Ray, compilation and warm-up.
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

SLOW = "gymnasium:benchmarks.slow_simulator:SlowCartPole-v0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    env: str = SLOW
    """Environment: by default CartPole with a wait of 10 ms in each step."""
    actors: tuple[int, ...] = (1, 2, 4)
    """Numbers of actors; the first is the baseline of the ratios."""
    num_envs: int = 8
    """Number of environments, divided over the actors."""
    block_rows: int = 32
    """Rows that an actor sends at a time."""
    rows: int = 2_000
    """Rows of a measurement."""
    rounds: int = 3
    """Measurements of each number of actors, alternating."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/actors.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.actors", description=__doc__)
    for option in ("num_envs", "block_rows", "rows", "rounds"):
        if getattr(flags, option) < 1:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least 1")
    if not flags.actors or any(number < 1 for number in flags.actors):
        raise ValueError(f"actors={flags.actors}: must be numbers of at least 1")
    check_writable(flags.json)
    report: dict[str, Any] = {"stamp": stamp(), "flags": dataclasses.asdict(flags)}
    rates: dict[int, list[float]] = {number: [] for number in flags.actors}
    for number in alternating(flags.actors, flags.rounds):
        rates[number].append(rows_per_second(flags, number))
    base = rates[flags.actors[0]]
    report["rows_per_second"] = {number: spread(rates[number]) for number in flags.actors}
    report["over_first"] = {number: ratio(rates[number], base) for number in flags.actors}
    print(describe(report["stamp"]))
    print(f"{flags.env}; {MEDIANS}; {RATIOS}")
    rows = [(n, report["rows_per_second"][n], report["over_first"][n]) for n in flags.actors]
    print(format_table(("actors", "rows/s", f"over {flags.actors[0]}"), rows))
    if flags.json is not None:
        write_json(flags.json, report)
        print(f"measurements in {flags.json}")


def rows_per_second(flags: Flags, actors: int) -> float:
    """Run with this number of actors, and return the rows/s without the first chunk.

    Raises:
        RuntimeError: if the run fails.
    """
    per_chunk = max(1, flags.rows // 8)
    options = [
        *("--env", flags.env, "--actors", str(actors), "--block-rows", str(flags.block_rows)),
        *("--num-envs", str(flags.num_envs), "--rollout-length", "4", "--batch-size", "32"),
        *("--replay", "prioritized", "--replay-capacity", "8192", "--warmup-rows", "256"),
        *("--total-rows", str(flags.rows + 4 * per_chunk), "--log-every", str(per_chunk)),
        *("--eval-episodes", "1"),
    ]
    return rate(records_of(options, seconds=flags.rows), "rows")


if __name__ == "__main__":
    sys.exit(main())
