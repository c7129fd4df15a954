"""Section ``dispatch`` of ``benchmarks.host``: asynchronous and synchronous dispatch on the CPU.

JAX fixes the dispatch mode when its backend starts, so each mode runs in its own process.
``python -m benchmarks.dispatch async|sync FLAGS`` answers every line on standard input with the
seconds per row of acting alone and of overlapped training.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.host import Flags, make_case
from benchmarks.processes import CPU_THREADS, Process
from benchmarks.timing import Case, alternating, ratio, spread

MODES = ("async", "sync")
_WORK = {"acting": "not learning", "training": "overlapped"}


def dispatch_section(flags: Flags, cadence: str) -> dict[str, Any]:
    """Measure acting and training in both modes, alternating between two processes."""
    fields = json.dumps({**dataclasses.asdict(flags), "cadences": [cadence]})
    processes = {
        mode: Process([sys.executable, "-m", "benchmarks.dispatch", mode, fields], CPU_THREADS)
        for mode in MODES
    }
    try:
        for process in processes.values():
            process.receive()
        return compare_modes(processes, flags.rounds)
    finally:
        for process in processes.values():
            process.close()


def compare_modes(processes: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Return rows/s of each workload in each mode, and the ratio of ``sync`` to ``async``.

    Raises:
        RuntimeError: if a process exits.
    """
    times: dict[str, dict[str, list[float]]] = {
        work: {mode: [] for mode in MODES} for work in _WORK
    }
    for mode in alternating(processes, rounds):
        answer = processes[mode].measure()
        if "missing" in answer:
            raise RuntimeError(f"dispatch {mode}: {answer['missing']}")
        for work in _WORK:
            times[work][mode].append(answer[work])
    return {
        work: {
            **{mode: spread([1 / value for value in each[mode]]) for mode in MODES},
            "sync_over_async": ratio(each["async"], each["sync"]),
        }
        for work, each in times.items()
    }


def _seconds_per_unit(case: Case, seconds: float) -> float:
    import jax

    start, units = time.perf_counter(), 0.0
    while units == 0 or time.perf_counter() - start < seconds:
        jax.block_until_ready(case.run())
        units += case.work
    return (time.perf_counter() - start) / units


def main(mode: str, fields: str) -> None:
    """Answer requests until standard input ends."""
    from jaxdqn.cli.backend import use_cpu_dispatch
    from jaxdqn.config.config import Config

    use_cpu_dispatch(Config(), mode)
    values = json.loads(fields)
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    flags = Flags(**{**values, **tuples})
    cases = {work: make_case(flags, how, flags.cadences[0]) for work, how in _WORK.items()}
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        answer = {work: _seconds_per_unit(case, flags.seconds) for work, case in cases.items()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
