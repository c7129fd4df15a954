"""Workers that died and do not answer yet."""

from __future__ import annotations

import time

from jaxdqn.monitoring.output import warn

_REPORT_SECONDS = 10.0
"""Time without an answer after which a worker is reported."""


class Deaths:
    """Workers whose last call failed, and the number of their deaths."""

    def __init__(self) -> None:
        self.count = 0
        """Number of deaths."""
        self._since: dict[str, float] = {}
        """Times of the deaths, by name of the worker."""
        self._reported: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._since)

    def note_death(self, worker: str) -> None:
        """Record a failed call. Calls fail until Ray has restarted the process, so several failed
        calls in a row are one death."""
        if worker not in self._since:
            self.count += 1
            self._since[worker] = time.monotonic()

    def note_life(self, worker: str) -> None:
        """Record that a worker has answered."""
        self._since.pop(worker, None)
        self._reported.discard(worker)

    def report(self) -> None:
        """Report on standard error, once, each worker that has been dead for ten seconds."""
        now = time.monotonic()
        for worker, since in self._since.items():
            if now - since > _REPORT_SECONDS and worker not in self._reported:
                self._reported.add(worker)
                warn(
                    f"the run waits for {worker}: its process died {now - since:.0f} s ago, and "
                    "Ray has not restarted it; the cluster may have no resources left"
                )

    def clear(self) -> None:
        """Forget the workers, which are started again."""
        self._since.clear()
        self._reported.clear()
