"""Failures of environments on the host, and the number of restarts that a run allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxdqn.errors import RunFailed


class EnvironmentFailed(RunFailed):
    """An environment on the host raised an exception, or returned an invalid time step.

    Args:
      message: message of one line.
      state: ``TrainState`` after the last complete iteration; None if it is unknown.
      report: metrics and counters of the chunk up to that point; None without a complete iteration.
      iterations: number of complete iterations of the chunk.
    """

    def __init__(
        self, message: str, state: Any = None, report: Any = None, iterations: int = 0
    ) -> None:
        super().__init__(message)
        self.state, self.report, self.iterations = state, report, iterations


class Restarts:
    """Restarts of the environments of a run, with one limit for acting and evaluation.

    Args:
      limit: maximum number of restarts.
    """

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._failures: list[EnvironmentFailed] = []

    def take(self, failed: EnvironmentFailed) -> int | None:
        """Record a failure and return the number of its restart, from 1; None beyond the limit."""
        if len(self._failures) >= self._limit:
            return None
        self._failures.append(failed)
        return len(self._failures)

    @property
    def failures(self) -> Sequence[EnvironmentFailed]:
        """Failures that caused a restart, in the order of their restarts."""
        return tuple(self._failures)
