"""Breakdown of the time of a run by use."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

USES = (
    "start",
    "compile",
    "rows",
    "draws",
    "gradients",
    "learn",
    "parameters",
    "messages",
    "evaluation",
    "checkpoint",
    "recovery",
)
"""Uses of the time of the driver process. start: start Ray and its workers; compile; rows, draws,
gradients: wait for actors, shards and learners; learn: gradient steps, or updates of the server;
parameters: publish them for the workers; messages: call workers and read their answers; recovery:
wait for the restart of a worker that died."""


class TimeUse:
    """Clock of one process, which starts when it is created.

    Uses do not overlap: the time of a nested use does not count for the enclosing use.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0
        """Seconds of the uses that ended inside the current one."""

    @contextmanager
    def spent(self, use: str) -> Iterator[None]:
        """Add the time of a ``with`` block to one of ``USES``."""
        started, before = time.perf_counter(), self._inner
        self._inner = 0.0
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._seconds[use] += seconds - self._inner
            self._inner = before + seconds

    @property
    def wall(self) -> float:
        """Seconds since the clock was created."""
        return time.perf_counter() - self._started

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each use so far."""
        return {use: self._seconds[use] for use in USES}
