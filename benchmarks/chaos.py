"""Kill random processes of runs on Ray: ``python -m benchmarks.chaos``.

There are three phases of the same duration: an undisturbed run; a run with kill -9 of a random
actor every ten seconds; and a run with kill -9 of a random actor, of a random shard or of the
driver. A run whose driver is killed is resumed. The results of each phase are: solved or not,
rows/s relative to the undisturbed phase, rows lost or duplicated since the driver's last start, and
processes and shared memory that remain after the end.
"""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ray_runs import environment_of_runs
from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from jaxdqn.cli.flags import parse, run_command

PHASES = {
    "undisturbed": (),
    "actors": ("ActorWorker",),
    "all parts": ("ActorWorker", "ShardWorker", "run"),
}
"""Kinds of processes that are killed in each phase; ``run`` is the driver process."""
_START_SECONDS = 150
"""Maximum seconds from a start of the driver to a new record (the second one of a new run)."""
_END_SECONDS = 30
"""Seconds after the end of a run after which a remaining child process counts as leaked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    seconds: float = 90.0
    """Seconds of a phase, without the start and restarts of the driver."""
    every: float = 10.0
    """Seconds between two kills."""
    actors: int = 4
    """Number of actors."""
    shards: int = 2
    """Number of replay shards."""
    server_mode: str | None = None
    """sync or async: use a parameter server; the last phase also kills its two learners."""
    seed: int = 0
    """Seed for the choice of victims."""
    json: str | None = None
    """File for the results, such as benchmarks/results/chaos.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.chaos", description=__doc__)
    for option in ("seconds", "every", "actors", "shards"):
        if getattr(flags, option) <= 0:
            raise ValueError(f"{option}={getattr(flags, option)}: must be above 0")
    check_writable(flags.json)
    report: dict[str, Any] = {"stamp": stamp(), "flags": dataclasses.asdict(flags), "phases": {}}
    for phase, kinds in PHASES.items():
        if flags.server_mode is not None and "ShardWorker" in kinds:
            kinds = (*kinds, "LearnerWorker")
        with tempfile.TemporaryDirectory() as scratch:
            report["phases"][phase] = Phase(flags, kinds, Path(scratch) / "run").play()
    base = report["phases"]["undisturbed"]["rows_per_second"]
    for result in report["phases"].values():
        result["rate_over_undisturbed"] = result["rows_per_second"] / base
    print(describe(report["stamp"]))
    names: tuple[str, ...] = ("solved", "rows_per_second", "rate_over_undisturbed", "kills")
    names = (*names, "lost", "duplicated", "leaked")
    rows = [(phase, *(str(_short(r[name])) for name in names)) for phase, r in
            report["phases"].items()]  # fmt: skip
    print(format_table(("phase", *names), rows))
    if flags.json is not None:
        write_json(flags.json, report)
        print(f"results in {flags.json}")


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


class Phase:
    """Run whose processes are killed at random. If the driver is killed, the run is resumed.

    Args:
      flags: flags of the command.
      kinds: kinds of processes to kill; empty to kill none.
      out: run directory.
    """

    def __init__(self, flags: Flags, kinds: Sequence[str], out: Path) -> None:
        self._flags, self._kinds, self._out = flags, kinds, out
        self._errors = out.with_name("errors.txt")
        """File with the standard error of the current driver."""
        self._random = random.Random(flags.seed)
        self._seen: dict[int, psutil.Process] = {}
        """Child processes of the drivers seen so far, by process id."""
        self._kills: dict[str, int] = dict.fromkeys(kinds, 0)
        self._shared = _shared_memory()
        self._segments: list[tuple[float, float]] = []
        """Rows and training seconds of each driver between its start and its last record."""

    def play(self) -> dict[str, Any]:
        """Run the phase and return its results.

        Raises:
            RuntimeError: if a run ends early, or does not start.
        """
        flags = self._flags
        run = self._start()
        try:
            deadline = time.monotonic() + flags.seconds
            while (left := deadline - time.monotonic()) > 0:
                time.sleep(min(flags.every, left))
                self._look(run)
                if run.poll() is not None:
                    raise RuntimeError(f"the run ended by itself: {self._error()}")
                if self._kinds and deadline - time.monotonic() > flags.every / 2:
                    run, lost = self._kill(run)
                    deadline += lost
            self._measure()
            self._look(run)
            run.send_signal(signal.SIGTERM)
            if run.wait(120) != 0:
                raise RuntimeError(f"the run failed: {self._error()}")
        finally:
            run.kill()
            run.wait()
        return self._results()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start or resume the run, and wait for a new record (the second one of a new run)."""
        flags, before = self._flags, len(self._records())
        options = ["--actors", str(flags.actors), "--replay-shards", str(flags.shards)]
        if flags.server_mode is not None:
            options += ["--learners", "2", "--server-mode", flags.server_mode]
        command = [
            *(sys.executable, "-m", "jaxdqn", "run", "cartpole", "--replay", "prioritized"),
            *("--engine", "ray", *options, "--total-rows", "50000000", "--stop-when", "never"),
            *("--log-every", "4096", "--eval-every", "16384", "--checkpoint-every", "8192"),
            *("--resume", "--out", str(self._out)),
        ]
        with self._errors.open("w") as errors:
            run = subprocess.Popen(
                command, env=environment_of_runs(), stdout=subprocess.DEVNULL, stderr=errors
            )
        deadline = time.monotonic() + _START_SECONDS
        while len(self._records()) <= max(before, 1) and run.poll() is None:
            if time.monotonic() > deadline:
                run.kill()
                raise RuntimeError(f"no record within {_START_SECONDS} s: {self._error()}")
            # A resumed run removes the records after its checkpoint.
            before = min(before, len(self._records()))
            time.sleep(0.1)
        self._from = len(self._records()) - 1
        self._look(run)
        return run

    def _kill(self, run: subprocess.Popen[bytes]) -> tuple[subprocess.Popen[bytes], float]:
        """Kill one random process.

        Return the current driver, and the seconds that its restart took (0 if another was killed).
        """
        kind = self._random.choice(self._kinds)
        if kind == "run":
            started = time.monotonic()
            self._measure()
            self._kills[kind] += 1
            run.kill()
            run.wait()
            return self._start(), time.monotonic() - started
        victims = _below(run, f"ray::{kind}")
        if victims:
            self._random.choice(victims).kill()
            self._kills[kind] += 1
        return run, 0.0

    def _records(self) -> list[dict[str, Any]]:
        file = self._out / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _error(self) -> str:
        return self._errors.read_text(errors="replace").strip()[-500:]

    def _measure(self) -> None:
        """Record the rows and training seconds of the current driver since its start."""
        records = self._records()
        first, last = records[self._from], records[-1]
        seconds = last["train_seconds"] - first["train_seconds"]
        self._segments.append((last["rows"] - first["rows"], seconds))

    def _look(self, run: subprocess.Popen[bytes]) -> None:
        for process in _below(run, ""):
            self._seen.setdefault(process.pid, process)

    def _results(self) -> dict[str, Any]:
        """Return the results; call after the end of the run."""
        _, left = psutil.wait_procs(list(self._seen.values()), timeout=_END_SECONDS)
        summary = json.loads((self._out / "summary.json").read_text())
        counted = summary["ray_rows"]
        known = counted["stored"] + counted["lost"] + counted["on_their_way"]
        rows, seconds = (sum(values) for values in zip(*self._segments, strict=True))
        return {
            "solved": summary["solved"],
            "seconds_to_solve": summary["seconds_to_solve"],
            "rows_per_second": rows / seconds,
            "kills": self._kills,
            "worker_restarts": summary["worker_restarts"],
            "ray_rows": counted,
            # Of the last driver: rows sent to a shard that died before storing them.
            "lost": counted["lost"],
            "duplicated": known - counted["taken"],
            "leaked": [*map(_name_of, left), *sorted(_shared_memory() - self._shared)],
        }


def _below(run: subprocess.Popen[bytes], word: str) -> list[psutil.Process]:
    """Return the descendants of a run whose command line contains ``word``."""
    found = []
    try:
        below = psutil.Process(run.pid).children(recursive=True)
    except psutil.Error:
        return []
    for process in below:
        try:
            if any(word in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _name_of(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:80]}"
    except psutil.Error:
        return str(process.pid)


def _shared_memory() -> set[str]:
    """Return the names of Ray's files in shared memory."""
    directory = Path("/dev/shm")
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    return {name for name in names if "plasma" in name or "ray" in name}


if __name__ == "__main__":
    sys.exit(main())
