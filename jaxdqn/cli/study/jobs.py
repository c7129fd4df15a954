"""Runs of a study, one after another, until all are done or a stop is requested.

Imports JAX only when a run starts.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdqn.cli.study.cells import CHECKPOINTS, Cell, Group, group_config, groups_of
from jaxdqn.cli.study.results import RESULTS, append_results, done_seeds, read_results, results_of
from jaxdqn.cli.study.settings import seeds_text
from jaxdqn.config.options import CHECKPOINT_SIGNALS
from jaxdqn.errors import RunFailed, RunStopped
from jaxdqn.monitoring import output
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.monitoring.output import say
from jaxdqn.monitoring.terminal import make_progress_logger
from jaxdqn.run.interrupt import handled, stop_on_signals
from jaxdqn.storage.jsonl import Record


class Study(NamedTuple):
    """Validated request: the cells and seeds to train."""

    out: Path
    """Directory of the study."""
    cells: Sequence[Cell]
    invalid: Mapping[str, str]
    """Error message of each preset and environment whose configuration is invalid."""
    limits: Mapping[str, int | None]
    """Environment steps after which an episode is truncated, by environment."""
    seeds: range
    seeds_at_once: int | None
    """Maximum number of seeds per run."""
    max_seconds: float | None
    """Wall-clock seconds after which the study stops."""


class Job(NamedTuple):
    """One run to make."""

    cell: Cell
    group: Group

    def __str__(self) -> str:
        return f"{self.cell}, {seeds_text(self.group.seeds)}"


class Outcome(NamedTuple):
    """Result of a sequence of jobs."""

    failed: int
    left: int
    """Jobs not started or interrupted."""
    ended_by: str | None
    """Reason of an early end: the name of a signal, or ``deadline``."""


class Signals(NamedTuple):
    """Access to the signals received while a study runs."""

    received: Callable[[], str | None]
    """Return the name of a signal received so far, or None. Call it between runs."""
    logger: Logger
    """Logger that raises again, in a run, a signal that was received during the setup."""


def jobs_of(study: Study, cell: Cell, results: Sequence[Record]) -> list[Job]:
    """Return the runs that a cell still needs."""
    missing = set(study.seeds) - done_seeds(cell, results)
    groups = groups_of(cell, missing, study.out, study.seeds_at_once)
    return [Job(cell, group) for group in groups]


def run_jobs(study: Study, jobs: Sequence[Job], report: Callable[[], None]) -> Outcome:
    """Make the runs in order and append their results; report a failed run and continue.

    Args:
        study: the request.
        jobs: runs to make.
        report: called after each run but the last, since a study may take days.
    """
    limit, failed = study.max_seconds, 0
    deadline = None if limit is None else time.perf_counter() + limit
    with receive_signals() as signals:
        for index, job in enumerate(jobs):
            seconds = None if deadline is None else deadline - time.perf_counter()
            expired = seconds is not None and seconds <= 0
            ended_by = signals.received() or ("deadline" if expired else None)
            if ended_by is None:
                say(f"run {index + 1} of {len(jobs)}: {job}")
                try:
                    ended_by = _run(study, job, seconds, signals.logger)
                except _run_errors() as error:
                    failed += 1
                    print_error(str(job), str(error))
                # Free the device memory of this run before the next one allocates.
                gc.collect()
            if ended_by is not None:
                return Outcome(failed, len(jobs) - index, ended_by)
            if index + 1 < len(jobs):
                _report_so_far(report)
    return Outcome(failed, 0, None)


def _report_so_far(report: Callable[[], None]) -> None:
    try:
        report()
    except ValueError as error:  # fails the command only for the final report
        print_error("report", str(error))


def print_error(name: str, message: str) -> None:
    """Print on stderr, in one line, why a cell cannot be trained."""
    line = " ".join(message.split())
    if "RESOURCE_EXHAUSTED" in line:
        line = f"not enough memory, try fewer --seeds-at-once: {line[:200]}"
    output.print_error(f"{name}: {line}")


@contextlib.contextmanager
def receive_signals() -> Iterator[Signals]:
    """Intercept the signals that stop a run inside the ``with`` block, as each run does."""
    with stop_on_signals() as request:
        if threading.current_thread() is not threading.main_thread():
            yield Signals(lambda: request.reason, Logger(lambda kind, record: None, lambda: None))
            return
        stopping = handled(CHECKPOINT_SIGNALS)
        forwarded: list[str] = []

        def forward(kind: str, record: Record) -> None:
            # A run handles signals only after its setup. An earlier signal was handled here, so
            # raise it again, once.
            if kind in ("start", "metrics") and request.reason is not None and not forwarded:
                forwarded.append(request.reason)
                signal.raise_signal(signal.Signals[request.reason])

        with _signal_numbers() as numbers:

            def received() -> str | None:
                for number in numbers():
                    if number in stopping:
                        request.record(signal.Signals(number).name)
                return request.reason

            yield Signals(received, Logger(forward, lambda: None))


@contextlib.contextmanager
def _signal_numbers() -> Iterator[Callable[[], bytes]]:
    """Yield a function that returns the signal numbers received since its last call.

    Python writes every signal number into this pipe, whichever handler is installed. It is needed
    because a run that has finished its budget does not report a signal.
    """
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def numbers() -> bytes:
        with contextlib.suppress(BlockingIOError):
            return reader.recv(4096)
        return b""

    try:
        yield numbers
    finally:
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()


def _run(study: Study, job: Job, max_seconds: float | None, logger: Logger) -> str | None:
    """Train a group unless it is finished, then append its results.

    Returns:
        The reason of an interruption, or None.
    """
    from jaxdqn.run.runner import run

    cell, group = job
    if group.state != "finished":
        config = group_config(cell, group.seeds, max_seconds)
        parts: dict[str, Any] = dict(cell.parts)
        try:
            result = run(
                config,
                out=group.directory,
                resume=True,
                preset=cell.preset,
                loggers=[make_progress_logger(config), logger],
                **parts,
            )
        except RunStopped as stopped:
            return stopped.reason
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
    # A recorded run is never resumed, and its checkpoints are large: one replay per seed.
    shutil.rmtree(group.directory / CHECKPOINTS, ignore_errors=True)
    finals = [result["final_return"] for result in results]
    text = ", ".join("none" if value is None else f"{value:.2f}" for value in finals)
    say(f"recorded {seeds_text(result['seed'] for result in results)}: return {text}")
    return None


def _run_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that end a run but not the study."""
    import jax

    return ValueError, RunFailed, jax.errors.JaxRuntimeError
