"""Loggers, which receive the records of a run and write them to files or elsewhere.

A logger is a pair of functions, ``log(kind, record)`` and ``close()``. The host loop calls ``log``
between chunks with plain Python values. The kinds of records are:

- ``"start"``, once, before anything is compiled: ``config``; ``out``, the run directory or None;
  with an environment on the host ``acting``, when it acts relative to learning;
- ``"metrics"``, once per chunk: the running totals ``rows``, ``env_steps``, ``gradient_steps``,
  ``seconds``, ``train_seconds`` and ``eval_seconds``, and for this chunk ``env_steps_per_second``,
  ``gradient_steps_per_second``, ``episodes``, ``return_mean``, ``length_mean``, ``loss``,
  ``grad_norm``, ``q_mean``, ``epsilon``, the metrics of a custom loss, and the metrics of
  ``Config.diagnostics``;
- ``"evaluation"``, once per evaluation: the totals, ``return_mean``, ``return_std`` and others,
  and ``purpose``: ``evaluate`` or ``confirm``;
- ``"event"``, when something unusual happens: ``event`` is ``started``, ``resumed``,
  ``damaged``, ``checkpoint``, ``not finite``, ``rollback``, ``logger dropped``,
  ``callback dropped``, ``ended``, ``no curve`` or ``stopped``, followed by details;
- ``"summary"``, once, at the end.

In the records of a population, totals are sums over the learners and averages are averages over
the learners. ``learners`` contains the values of each learner.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdqn.monitoring.output import warn
from jaxdqn.storage.jsonl import FILES, Record, to_json


class Logger(NamedTuple):
    """Receiver of records; ``close`` is called once, however the run ends."""

    log: Callable[[str, Record], None]
    close: Callable[[], None]
    name: str = "logger"
    """Name in the message that reports a failure of this logger."""


class LoggerGroup:
    """Loggers of a run. A logger that raises is dropped, and the run continues.

    A dropped logger is closed and receives no more records. A line on standard error and an event
    report it.

    Args:
        loggers: loggers of the caller.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = list(loggers)
        self.files: Logger | None = None
        """Logger of the run directory. Its errors are raised, because the run cannot continue
        without its records."""

    def log(self, kind: str, record: Record) -> None:
        """Pass a record to every logger."""
        failed = []
        for logger in self._loggers:
            try:
                logger.log(kind, record)
            except Exception as error:
                failed.append((logger, error))
        if self.files is not None:
            self.files.log(kind, record)
        for logger, failure in failed:
            self._drop(logger, failure)

    def close(self) -> None:
        """Close every logger."""
        for logger in self._loggers:
            try:
                logger.close()
            except Exception as error:
                warn(_failure_of(logger, error))
        if self.files is not None:
            self.files.close()

    def _drop(self, dropped: Logger, error: Exception) -> None:
        self._loggers = [logger for logger in self._loggers if logger is not dropped]
        with contextlib.suppress(Exception):
            dropped.close()
        reason = _failure_of(dropped, error)
        warn(f"{reason}; it is dropped, and the run continues")
        self.log("event", {"event": "logger dropped", "reason": reason})


def _failure_of(logger: Logger, error: Exception) -> str:
    name = getattr(logger, "name", type(logger).__name__)
    return f"{name} failed: {type(error).__name__}: {error}"


def make_jsonl_logger(directory: Path) -> Logger:
    """Make a logger that appends each record as a line to the files of ``FILES``."""
    # The files remain open during the run. Line buffering lets a reader follow them.
    files = {
        kind: open(directory / name, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        for kind, name in FILES.items()
    }

    def log(kind: str, record: Record) -> None:
        if kind in files:
            files[kind].write(to_json(record) + "\n")

    def close() -> None:
        for file in files.values():
            # A full disk was already reported when the line was written.
            with contextlib.suppress(OSError):
                file.close()

    return Logger(log=log, close=close)
