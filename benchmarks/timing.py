"""Timing: alternate the cases of a comparison, and wait for results before reading the clock.

Imports JAX only where it is used, so that ``--help`` of a command is fast.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from benchmarks.report import short

Name = TypeVar("Name")

MEDIANS = "medians (minimum-maximum)"
"""Caption of ``spread`` in tables."""
RATIOS = "ratios: median (95 % interval over the rounds; minimum-maximum below six rounds)"
"""Caption of ``median_interval`` in tables."""


class Effort(NamedTuple):
    """Amount of measurement."""

    rounds: int
    """Measurements of each case."""
    seconds: float
    """Approximate minimum duration of one measurement."""
    iterations: int
    """Iterations in one call of a compiled scan."""
    quick: bool = False
    """Omit the larger cases."""


class Interval(NamedTuple):
    """Median and the ends of an interval around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)}-{short(self.high)})"


class Case(NamedTuple):
    """Work to time."""

    run: Callable[[], Any]
    """Do the work once and return arrays to wait for; must be compiled already."""
    work: float = 1.0
    """Units of work per call."""


def spread(values: Sequence[float]) -> Interval:
    """Return the median, minimum and maximum."""
    return Interval(statistics.median(values), min(values), max(values))


def microseconds(seconds: Sequence[float]) -> Interval:
    """Return the median, minimum and maximum of times in microseconds."""
    return Interval(*(1e6 * value for value in spread(seconds)))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the median and its distribution-free confidence interval.

    The ends are the k-th smallest and k-th largest value, for the largest k whose coverage, by the
    binomial distribution, is at least ``confidence``. Below six values no k suffices at 0.95; the
    ends are then the minimum and the maximum.
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
    """Time every case once per round; return seconds per unit of work, [rounds] for each case.

    Each case runs twice before the first round: once to warm up, and once to choose the number of
    calls per measurement.

    Args:
        cases: cases by name.
        rounds: measurements of each case.
        seconds: approximate minimum duration of one measurement.
        clock: returns the time in seconds.
        wait: blocks until the result of ``run`` is computed; ``jax.block_until_ready`` by default.

    Raises:
        ValueError: if ``rounds`` is below 1.
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
    for name in alternating(cases, rounds):
        duration = measure(cases[name], calls[name])
        times[name].append(duration / (calls[name] * cases[name].work))
    return times


def alternating(names: Iterable[Name], rounds: int) -> Iterator[Name]:
    """Yield every name once per round, in reversed order every other round.

    A machine that gradually becomes faster or slower then favours no case.
    """
    order = list(names)
    for index in range(rounds):
        yield from order if index % 2 == 0 else reversed(order)


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Return the ratio of two cases' times, computed round by round."""
    return median_interval([a / b for a, b in zip(numerator, denominator, strict=True)])


def verdict(measured: Interval, bar: float, *, higher_is_better: bool) -> str:
    """Compare an interval with a bar; it is undecided if the bar lies inside the interval."""
    if higher_is_better:
        sign, reached, missed = ">=", measured.low >= bar, measured.high < bar
    else:
        sign, reached, missed = "<=", measured.high <= bar, measured.low > bar
    return f"{sign} {bar:g}: {'reached' if reached else 'missed' if missed else 'undecided'}"


def compile_timed(
    function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> tuple[Callable[..., Any], float]:
    """Trace and compile a function for ``args``; return it and the seconds that this took."""
    import jax

    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donate).lower(*args).compile()
    return compiled, time.perf_counter() - start


def compile_cold() -> None:
    """Disable the compilation cache on disk, so that compilation is timed from a cold start."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)


def _block_until_ready(result: Any) -> Any:
    import jax

    return jax.block_until_ready(result)
