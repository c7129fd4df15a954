"""Timing: alternate what is compared, wait before reading the clock, say on what machine.

Imports JAX only where it is used, so that a command's ``--help`` is quick.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.report import short

OF_MEDIAN = "its interval over the alternations (95 % from six on, below that least-greatest)"
"""What ``median_interval`` gives, in words, for the tables."""


class Interval(NamedTuple):
    """A median and the ends of an interval around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)}-{short(self.high)})"


class Case(NamedTuple):
    """Something to time."""

    run: Callable[[], Any]
    """Does its work and returns arrays to wait for; compiled before."""
    work: float = 1.0
    """Units of work that one call does."""


def spread(values: Sequence[float]) -> Interval:
    """Return the median, least and greatest of ``values``."""
    return Interval(statistics.median(values), min(values), max(values))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the median and its interval between order statistics.

    The k-th least and k-th greatest value, with the largest k for which the
    binomial distribution gives the interval ``confidence`` whatever the values'
    distribution. With fewer than six values no k does: then least and greatest.
    """
    ordered, n = sorted(values), len(values)
    rank, below = 1, 0.0
    for k in range(1, n // 2 + 1):
        below += math.comb(n, k - 1) / 2.0**n
        if 1.0 - 2.0 * below >= confidence:
            rank = k
    return Interval(statistics.median(ordered), ordered[rank - 1], ordered[n - rank])


def alternate(
    cases: Mapping[str, Case],
    *,
    rounds: int,
    seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[Any], Any] | None = None,
) -> dict[str, list[float]]:
    """Time every case once a round; return seconds per unit of work, [rounds] each.

    The order is reversed every other round, so a machine that speeds up or
    slows down favours none. Each case runs twice beforehand: once to warm up,
    and once to find how many calls a measurement takes.

    Args:
      rounds: measurements of each case.
      seconds: that one measurement lasts, at least about.
      wait: blocks until what ``run`` returned is computed;
        ``jax.block_until_ready`` by default.

    Raises:
      ValueError: if there is no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: must be at least 1")
    wait = wait or _block_until_ready

    def measure(case: Case, calls: int) -> float:
        start = clock()
        for _ in range(calls):
            result = case.run()
        wait(result)
        return clock() - start

    calls = {}
    for name, case in cases.items():
        measure(case, 1)
        calls[name] = max(1, math.ceil(seconds / max(measure(case, 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds):
        for name in list(cases)[:: 1 if turn % 2 == 0 else -1]:
            took = measure(cases[name], calls[name])
            times[name].append(took / (calls[name] * cases[name].work))
    return times


def ratio(over: Sequence[float], under: Sequence[float]) -> Interval:
    """Return the ratio of two cases' times, formed round by round."""
    return median_interval([a / b for a, b in zip(over, under, strict=True)])


def compile_apart(
    function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> tuple[Callable[..., Any], float]:
    """Trace and compile a function for ``args``; return it and the seconds it took."""
    import jax

    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donate).lower(*args).compile()
    return compiled, time.perf_counter() - start


def compile_cold() -> None:
    """Have every later compilation done anew, not read from a cache on disk."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)


def _block_until_ready(result: Any) -> Any:
    import jax

    return jax.block_until_ready(result)
