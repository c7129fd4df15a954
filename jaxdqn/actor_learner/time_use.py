"""Seconds of a run by what they were spent on."""

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
"""Uses of the time of the process of the run. start: of Ray and its workers; compile; rows, draws,
gradients: wait for actors, shards and learners; learn: gradient steps, or updates of the server;
parameters: copy them to where workers read them; messages: call workers and read their answers;
recovery: wait while a worker that has died is started again."""


class TimeUse:
    """Clock of one process. Uses do not overlap: the time of an inner one is not that of an outer.

    The clock starts when it is made.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0
        """Seconds of the uses that ended inside the present one."""

    @contextmanager
    def spent(self, use: str) -> Iterator[None]:
        """Count the time of a block for one of ``USES``."""
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
        """Seconds since the clock was made."""
        return time.perf_counter() - self._started

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each use so far."""
        return {use: self._seconds[use] for use in USES}
