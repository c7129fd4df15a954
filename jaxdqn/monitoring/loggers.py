"""Loggers: they receive the records of a run, and write them to files or elsewhere.

A logger is two functions, ``log(kind, record)`` and ``close()``. The host loop
calls ``log`` between chunks with plain Python values, of these kinds:

- ``"start"``, once, before anything is compiled: ``config``, and ``out``, the
  run directory or None;
- ``"metrics"``, once a chunk: running totals ``rows``, ``env_steps``,
  ``gradient_steps`` and ``seconds``, and of this chunk ``env_steps_per_second``,
  ``gradient_steps_per_second``, ``episodes``, ``return_mean``, ``length_mean``,
  ``loss``, ``grad_norm``, ``q_mean``, ``epsilon``;
- ``"evaluation"``, once an evaluation: the totals, ``return_mean``,
  ``return_std`` and others, and ``purpose``: ``evaluate`` or ``confirm``;
- ``"event"``, when something unusual happens: ``event`` is ``started``, ``resumed``,
  ``damaged``, ``checkpoint``, ``not finite`` or ``rollback``, followed by details;
- ``"summary"``, once, at the end.

In the records of a population, totals are sums over its learners and averages are averages
over them. ``learners`` holds the values of each learner.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxdqn.storage.jsonl import FILES, Record, to_json


class Logger(NamedTuple):
    """Receives records; ``close`` is called once, however the run ends."""

    log: Callable[[str, Record], None]
    close: Callable[[], None]


def make_jsonl_logger(directory: Path) -> Logger:
    """Make a logger that appends each record as a line to the files of ``FILES``."""
    # The files stay open during the run. Line buffering lets a reader follow them.
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
