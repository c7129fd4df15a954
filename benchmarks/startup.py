"""Measure start-up times and the memory of a long run: ``python -m benchmarks.startup``.

Start-up: the time of ``--help``, of ``import jaxdqn``, and of the CartPole preset from the command
to the first chunk, to the line that reports *solved*, and to the exit of the process, with an empty
(cold) and a filled (warm) compilation cache. Repeated run: the time of a second ``run()`` in one
process, with a different seed and learning rate. Long run: resident memory and speed near the start
and near the end of four million rows, each over about a tenth of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import MEDIANS, spread
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.errors import RunFailed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    rounds: int = 3
    """Measurements of each start."""
    quick: bool = False
    """One measurement of each start and a short run: a first look, not a measurement."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/startup.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.startup", description=__doc__)
    if flags.rounds < 1:
        raise ValueError(f"rounds={flags.rounds}: must be at least 1")
    check_writable(flags.json)
    report: dict[str, Any] = {"stamp": stamp()}
    print(describe(report["stamp"]))
    rounds = 1 if flags.quick else flags.rounds
    with tempfile.TemporaryDirectory() as scratch:
        report["starts"] = measure_starts(rounds, Path(scratch))
        report["repeated_run"] = measure_repeated_runs(rounds)
        report["long_run"] = measure_long_run(100_000 if flags.quick else 4_000_000, Path(scratch))
    starts, run, repeated = report["starts"], report["long_run"], report["repeated_run"]
    rows = [
        ["--help, s", starts["help"], "< 0.5"],
        ["import jaxdqn, s", starts["import"], "< 1"],
        ["command to first chunk, cold, s", starts["cold_first_chunk"], "< 10"],
        ["command to first chunk, warm, s", starts["warm_first_chunk"], "<= 1.8"],
        ["command to solved, cold, s", starts["cold_solved"], "<= 8"],
        ["command to solved, warm, s", starts["warm_solved"], "<= 2.5"],
        ["command to the exit of the process, warm, s", starts["warm_exit"], ""],
        ["second run() in one process, s", repeated["seconds"], "< 0.7"],
        ["without training and evaluation, s", repeated["overhead"], ""],
        ["resident memory, first tenth, MB", run["megabytes_first"], ""],
        ["resident memory, last tenth, MB", run["megabytes_last"], "equal to first"],
        ["environment steps/s, first tenth", run["steps_per_second_first"], ""],
        ["environment steps/s, last tenth", run["steps_per_second_last"], "equal to first"],
    ]
    print(MEDIANS)
    print(format_table(["measured", "value", "bar"], rows))
    if flags.json is not None:
        write_json(flags.json, report)
        print(f"measurements in {flags.json}")


def measure_starts(rounds: int, directory: Path) -> dict[str, Any]:
    """Time each kind of start once per round."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for index in range(rounds):
        start = time.perf_counter()
        _command("-m", "jaxdqn", "run", "--help").communicate()
        seconds["help"].append(time.perf_counter() - start)
        start = time.perf_counter()
        _command("-c", "import jaxdqn").communicate()
        seconds["import"].append(time.perf_counter() - start)
        for kind in ("cold", "warm"):
            out, cache = directory / f"{kind}-{index}", directory / f"cache-{index}"
            for name, value in solve(out, cache).items():
                seconds[f"{kind}_{name}"].append(value)
    return {name: spread(values) for name, values in seconds.items()}


_REPEATED_RUNS = """
import json, sys, time
import jaxdqn
from jaxdqn.run import run
times = []
for seed in range(2):
    start = time.perf_counter()
    config = jaxdqn.preset(
        "cartpole", stop_when="solved", seed=seed, learning_rate=2e-3 + 1e-4 * seed
    )
    summary = run(config).summary
    times.append((time.perf_counter() - start, summary["train_seconds"] + summary["eval_seconds"]))
json.dump(times[-1], sys.stdout)
"""


def measure_repeated_runs(rounds: int) -> dict[str, Any]:
    """Time the second run of the CartPole preset in a process, once per round."""
    seconds: dict[str, list[float]] = {"seconds": [], "overhead": []}
    for _ in range(rounds):
        command = [sys.executable, "-c", _REPEATED_RUNS]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ)
        total, trained = json.loads(done.stdout)
        seconds["seconds"].append(total)
        seconds["overhead"].append(total - trained)
    return {name: spread(values) for name, values in seconds.items()}


def measure_long_run(rows: int, directory: Path) -> dict[str, float]:
    """Train a small agent for many rows; sample its memory and speed during training."""
    import psutil

    from jaxdqn.storage.jsonl import read_lines

    out = directory / "long"
    flags = ["--total-rows", str(rows), "--log-every", str(rows // 100), "--eval-every", "0"]
    flags += ["--stop-when", "never", "--checkpoint-every", "0", "--out", str(out)]
    process = _command("-m", "jaxdqn", "run", "cartpole", *flags)
    resident: list[tuple[int, float]] = []
    while process.poll() is None:
        chunks = len(read_lines(out / "metrics.jsonl"))
        if chunks:
            resident.append((chunks, psutil.Process(process.pid).memory_info().rss / 1e6))
        time.sleep(0.1)
    speeds = [record["env_steps_per_second"] for record in read_lines(out / "metrics.jsonl")]
    # Samples after the last chunk may include the final evaluation; exclude them.
    first = [size for chunks, size in resident if 5 < chunks <= 15]
    last = [size for chunks, size in resident if 85 <= chunks < 98]
    return {
        "rows": rows,
        "megabytes_first": statistics.median(first),
        "megabytes_last": statistics.median(last),
        "steps_per_second_first": statistics.median(speeds[5:15]),
        "steps_per_second_last": statistics.median(speeds[-15:-5]),
    }


_LINES = {"rows ": "first_chunk", "solved ": "solved"}
"""Start of the first line of progress, and of the line of the outcome."""


def solve(out: Path, cache: Path) -> dict[str, float]:
    """Solve CartPole; return the seconds from the command to the events of ``_LINES`` and the exit.

    Raises:
        RunFailed: if the command fails or does not solve CartPole.
    """
    start = time.perf_counter()
    flags = ["cartpole", "--stop-when", "solved", "--out", str(out)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "jaxdqn", "run", *flags]
    seconds: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            for opening, name in _LINES.items():
                if line.startswith(opening):
                    seconds.setdefault(name, time.perf_counter() - start)
    seconds["exit"] = time.perf_counter() - start
    if process.returncode or len(seconds) <= len(_LINES):
        raise RunFailed(f"jaxdqn run cartpole: exit code {process.returncode}, with {seconds}")
    return seconds


def _command(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
