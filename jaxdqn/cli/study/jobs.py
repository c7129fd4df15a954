"""The runs of a study, one after the other, until they are done or something asks to end.

Imports JAX only where a run begins.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdqn.cli.study.cells import CHECKPOINTS, Cell, Group, group_config, groups_of
from jaxdqn.cli.study.results import RESULTS, append_results, done_seeds, read_results, results_of
from jaxdqn.cli.study.settings import seeds_text
from jaxdqn.errors import RunFailed
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.monitoring.terminal import make_progress_logger
from jaxdqn.run.interrupt import stop_on_signals
from jaxdqn.storage.jsonl import Record


class Study(NamedTuple):
    """What is asked for, checked."""

    out: Path
    """Its directory."""
    cells: Sequence[Cell]
    refused: Mapping[str, str]
    """By preset and environment, why these cannot be trained together."""
    limits: Mapping[str, int | None]
    """By environment, steps after which an episode is truncated."""
    seeds: range
    seeds_at_once: int | None
    """Most seeds of a run."""
    max_seconds: float | None
    """Wall-clock seconds after which it ends."""


class Job(NamedTuple):
    """A run to make."""

    cell: Cell
    group: Group

    def __str__(self) -> str:
        return f"{self.cell}, {seeds_text(self.group.seeds)}"


class Outcome(NamedTuple):
    """What became of jobs."""

    failed: int
    left: int
    """Not begun, or interrupted."""
    ended_by: str | None
    """What ended the study before its end: a signal's name, or ``deadline``."""


class Heard(NamedTuple):
    """What is known of signals."""

    why: Callable[[], str | None]
    """Returns the name of one that came, or None; call it between runs."""
    logger: Logger
    """Of a run: passes on to it what came before it could listen."""


def jobs_of(study: Study, cell: Cell, results: Sequence[Record]) -> list[Job]:
    """Return the runs that a cell still needs."""
    missing = set(study.seeds) - done_seeds(cell, results)
    groups = groups_of(cell, missing, study.out, study.seeds_at_once)
    return [Job(cell, group) for group in groups]


def run_jobs(study: Study, jobs: Sequence[Job], report: Callable[[], None]) -> Outcome:
    """Make runs and append their results; one that fails is told in a line, and passed over.

    Args:
        study: what is asked for.
        jobs: the runs, in their order.
        report: called when one has ended and another follows, since a study may take days.
    """
    limit, failed = study.max_seconds, 0
    deadline = None if limit is None else time.perf_counter() + limit
    with signals_heard() as heard:
        for place, job in enumerate(jobs):
            seconds = None if deadline is None else deadline - time.perf_counter()
            ended_by = heard.why() or ("deadline" if seconds is not None and seconds <= 0 else None)
            if ended_by is None:
                print(f"run {place + 1} of {len(jobs)}: {job}", flush=True)
                try:
                    ended_by = _run(study, job, seconds, heard.logger)
                except _failures() as error:
                    failed += 1
                    complain(str(job), str(error))
                # What a run held on the device would be in the next one's way.
                gc.collect()
            if ended_by is not None:
                return Outcome(failed, len(jobs) - place, ended_by)
            if place + 1 < len(jobs):
                _report_so_far(report)
    return Outcome(failed, 0, None)


def _report_so_far(report: Callable[[], None]) -> None:
    try:
        report()
    except ValueError as error:  # at the end it is a failure; until then the study goes on
        complain("report", str(error))


def complain(name: str, why: str) -> None:
    """Say in a line why a cell cannot be trained."""
    line = " ".join(why.split())
    if "RESOURCE_EXHAUSTED" in line:
        line = f"too little memory, try fewer --seeds-at-once: {line[:200]}"
    print(f"error: {name}: {line}", file=sys.stderr)


@contextlib.contextmanager
def signals_heard() -> Iterator[Heard]:
    """Hold back SIGINT and SIGTERM inside the ``with`` block, in which runs hold them back too."""
    with stop_on_signals() as stop:
        if threading.current_thread() is not threading.main_thread():
            yield Heard(lambda: stop.reason, Logger(lambda kind, record: None, lambda: None))
            return
        passed_on: list[str] = []

        def pass_on(kind: str, record: Record) -> None:
            # Between chunks a run listens; one that came while it was being set up came here.
            if kind == "metrics" and stop.reason is not None and not passed_on:
                passed_on.append(stop.reason)
                signal.raise_signal(signal.Signals[stop.reason])

        with _every_signal() as numbers:

            def why() -> str | None:
                for number in numbers():
                    if number in (signal.SIGINT, signal.SIGTERM):
                        stop.record(signal.Signals(number).name)
                return stop.reason

            yield Heard(why, Logger(pass_on, lambda: None))


@contextlib.contextmanager
def _every_signal() -> Iterator[Callable[[], bytes]]:
    """Give what returns the numbers of the signals since the last call, whoever handled them.

    A run is silent about one that came when it had used up its budget: hence the pipe, into which
    Python writes each.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def numbers() -> bytes:
        with contextlib.suppress(BlockingIOError):
            return ours.recv(4096)
        return b""

    try:
        yield numbers
    finally:
        signal.set_wakeup_fd(before)
        ours.close()
        theirs.close()


def _run(study: Study, job: Job, max_seconds: float | None, logger: Logger) -> str | None:
    """Train, unless that is done, and append the results; return what interrupted it."""
    from jaxdqn.run.runner import run

    cell, group = job
    if group.state != "ended":
        config = group_config(cell, group.seeds, max_seconds)
        result = run(
            config,
            out=group.directory,
            resume=True,
            preset=cell.preset,
            loggers=[make_progress_logger(config), logger],
        )
        if result.summary["interrupted"]:
            return result.summary["ended_by"]
    file = study.out / RESULTS
    done = done_seeds(cell, read_results(file).results)
    results = [
        result
        for result in results_of(group.directory, cell, study.limits[cell.env])
        if result["seed"] not in done
    ]
    append_results(file, results)
    # There is nothing to go on with, and they hold a replay for each seed.
    shutil.rmtree(group.directory / CHECKPOINTS, ignore_errors=True)
    finals = [result["final_return"] for result in results]
    text = ", ".join("none" if value is None else f"{value:.2f}" for value in finals)
    print(f"recorded {seeds_text(result['seed'] for result in results)}: return {text}")
    return None


def _failures() -> tuple[type[Exception], ...]:
    """Return what ends a run and not the study."""
    import jax

    return ValueError, RunFailed, jax.errors.JaxRuntimeError
