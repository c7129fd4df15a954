"""Measure actors on Ray: rows/s of runs with different numbers of them: ``python -m
benchmarks.actors``.

Each measurement is a run of ``jaxdqn run --engine ray`` in a process of its own. Its rows/s are
those between two records, without the start of Ray, compilation and warm-up.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import MEDIANS, RATIOS, alternating, ratio, spread
from jaxdqn.cli.flags import parse, run_command

SLOW = "gymnasium:benchmarks.slow_simulator:SlowCartPole-v0"
_START_SECONDS = 100
"""Most seconds from the command to the first record, on a machine with other work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    env: str = SLOW
    """Environment: by default CartPole with a wait of 10 ms in each step."""
    actors: tuple[int, ...] = (1, 2, 4)
    """Numbers of actors; the first is the base of the ratios."""
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
    """Run with a number of actors, and return the rows/s between the second record and the last.

    Raises:
        RuntimeError: if the run fails.
    """
    per_chunk = max(1, flags.rows // 8)
    command = [
        *(sys.executable, "-m", "jaxdqn", "run", "cartpole", "--env", flags.env),
        *("--engine", "ray", "--actors", str(actors), "--block-rows", str(flags.block_rows)),
        *("--num-envs", str(flags.num_envs), "--rollout-length", "4", "--batch-size", "32"),
        *("--replay", "prioritized", "--replay-capacity", "8192", "--warmup-rows", "256"),
        *("--total-rows", str(flags.rows + 4 * per_chunk), "--log-every", str(per_chunk)),
        *("--eval-every", "0", "--eval-episodes", "1", "--stop-when", "never"),
    ]
    root = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [*command, "--out", f"{scratch}/run"],
            env={**os.environ, "PYTHONPATH": root, "MPLBACKEND": "agg"},
            capture_output=True,
            text=True,
            timeout=_START_SECONDS + flags.rows,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"actors={actors}: the run failed: {done.stderr.strip()[-500:]}")
        lines = Path(scratch, "run", "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[1]), json.loads(lines[-1])
    return (last["rows"] - first["rows"]) / (last["train_seconds"] - first["train_seconds"])


if __name__ == "__main__":
    sys.exit(main())
