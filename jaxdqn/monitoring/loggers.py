"""Where the records of a run go: files, the terminal, or anywhere of your own.

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
- ``"event"``, when something out of the ordinary course happens: ``event`` is ``started``,
  ``resumed``, ``checkpoint``, ``not finite`` or ``rollback``, with what there is to say of it;
- ``"summary"``, once, at the end.

In the records of a population totals are sums over its learners, what is
averaged is averaged over them, and ``learners`` holds the values of each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxdqn.storage.jsonl import FILES, Record, to_json


class Logger(NamedTuple):
    """Takes records; ``close`` is called once, however the run ends."""

    log: Callable[[str, Record], None]
    close: Callable[[], None]


def make_jsonl_logger(directory: Path) -> Logger:
    """Make a logger that appends each record as a line to the files of ``FILES``."""
    # Open for the whole run, and written a line at a time so that they can be followed.
    files = {
        kind: open(directory / name, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        for kind, name in FILES.items()
    }

    def log(kind: str, record: Record) -> None:
        if kind in files:
            files[kind].write(to_json(record) + "\n")

    def close() -> None:
        for file in files.values():
            # A disk that is full was reported when the line was written.
            with contextlib.suppress(OSError):
                file.close()

    return Logger(log=log, close=close)
