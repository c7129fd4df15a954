"""Timing: alternate what is compared, wait before reading the clock, say on what machine.

Imports JAX only where it is used, so that a command's ``--help`` is quick.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

OF_MEDIAN = "its interval over the alternations (95 % from six on, below that least-greatest)"
"""What ``median_interval`` gives, in words, for the tables."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


class Interval(NamedTuple):
    """A median and the ends of an interval around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


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


def stamp() -> dict[str, Any]:
    """Return on what machine, with what versions and when something is measured."""
    import jax

    import jaxdqn

    device = jax.devices()[0]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device_kind": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "jaxdqn": jaxdqn.__version__,
        "commit": _commit(),
    }


def describe(stamped: Mapping[str, Any]) -> str:
    """Return a stamp as one line."""
    return (
        f"{stamped['device_kind']} ({stamped['processor']}, {stamped['cores']} cores, load "
        f"{stamped['load_average']}), jax {stamped['versions']['jax']}, "
        f"Python {stamped['python']}, commit {stamped['commit']}, {stamped['time']}"
    )


def check_writable(path: str | None) -> None:
    """Refuse, before anything is measured, a file that could not be written.

    Raises:
      ValueError: saying why.
    """
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{path}: must be a file, not a directory")
    nearest = target.parent
    while not nearest.exists():
        nearest = nearest.parent
    try:
        tempfile.TemporaryFile(dir=nearest).close()
        if target.exists():
            target.open("a").close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as JSON, making the directory; an old file is replaced."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def format_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return an aligned table: first column to the left, the others to the right."""
    cells = [list(headers), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        return "  ".join([first, *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])

    return "\n".join(line(row).rstrip() for row in cells)


def format_markdown(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [list(headers), ["---"] * len(headers), *([_cell(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _block_until_ready(result: Any) -> Any:
    import jax

    return jax.block_until_ready(result)


def _short(value: float) -> str:
    """Return three significant digits, more before the point, never an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def _cell(value: Any) -> str:
    return _short(value) if isinstance(value, float) else str(value)


def _plain(content: Any) -> Any:
    """Return named tuples as dictionaries, so that JSON keeps their names."""
    if hasattr(content, "_asdict"):
        return {name: _plain(value) for name, value in content._asdict().items()}
    if isinstance(content, Mapping):
        return {str(name): _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return content


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str:
    """Return the commit of the checkout, marked where it has changes; unknown outside one."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
