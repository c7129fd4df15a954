"""Clock and records of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence

from jaxdqn.monitoring.loggers import Logger
from jaxdqn.run.progress import Progress
from jaxdqn.storage.jsonl import Record


class Recorder:
    """Pass records to the loggers and measure time on the run's clock.

    The clock continues when a run is resumed, excluding the time between stop and resume.
    """

    def __init__(self, progress: Progress, loggers: Sequence[Logger]) -> None:
        self._progress, self._loggers = progress, loggers
        self._started = time.perf_counter()

    def start_clock(self, at: float = 0.0) -> None:
        """Set the clock to ``at`` seconds."""
        self._started = time.perf_counter() - at

    @property
    def seconds(self) -> float:
        """Seconds on the run's clock."""
        return time.perf_counter() - self._started

    def now(self) -> Record:
        """Return the fields common to all records: totals and seconds."""
        return {**self._progress.totals, "seconds": self.seconds}

    def log_event(self, record: Record) -> None:
        """Pass an event to every logger, with the common fields."""
        self.log("event", {**record, **self.now()})

    def log(self, kind: str, record: Record) -> None:
        """Pass a record to every logger."""
        for logger in self._loggers:
            logger.log(kind, record)
