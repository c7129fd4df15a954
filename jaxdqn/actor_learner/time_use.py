"""Breakdown of the time of a run by use."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

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


class Span:
    """Time of one ``with`` block, without the uses inside."""

    seconds = 0.0


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
    def spent(self, use: str) -> Iterator[Span]:
        """Add the time of a ``with`` block to a use.

        Yields:
            The time of this block, after its end.
        """
        started, before = time.perf_counter(), self._inner
        self._inner = 0.0
        span = Span()
        try:
            yield span
        finally:
            seconds = time.perf_counter() - started
            span.seconds = seconds - self._inner
            self._seconds[use] += span.seconds
            self._inner = before + seconds

    @property
    def wall(self) -> float:
        """Seconds since the clock was created."""
        return time.perf_counter() - self._started

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each of ``USES`` so far."""
        return {use: self._seconds[use] for use in USES}


class Limits:
    """Seconds for which the learner and the actors waited for each other."""

    def __init__(self) -> None:
        self.by_actors = 0.0
        """Seconds for which the learner waited for rows."""
        self.by_learner = 0.0
        """Seconds for which finished blocks waited, because gradient steps were due."""

    @property
    def name(self) -> str:
        """``actors`` or ``learner``: the part that determines the speed of the run."""
        return "actors" if self.by_actors >= self.by_learner else "learner"


class Compiled:
    """Function that is compiled at the first call for each combination of shapes.

    The time of compilation counts as ``compile``, and not for the use in which the function is
    called.

    Args:
      function: pure function.
      times: clock of the process.
      options: options of ``jax.jit``.
    """

    def __init__(self, function: Callable[..., Any], times: TimeUse, **options: Any) -> None:
        self._function, self._times = jax.jit(function, **options), times
        self._programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        shapes = tuple([leaf.shape for leaf in jax.tree.leaves(arguments)])
        program = self._programs.get(shapes)
        if program is None:
            with self._times.spent("compile"):
                program = self._function.lower(*arguments).compile()
            self._programs[shapes] = program
        return program(*arguments)
