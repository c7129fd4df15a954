"""Run chunks; divide long chunks into parts so that a stop request takes effect quickly."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.envs.vector.restarts import EnvironmentFailed
from jaxdqn.parallel import multihost
from jaxdqn.run.chunk_parts import divide_first_part, first_part, part_for_duration
from jaxdqn.run.compile import Chunk, Programs
from jaxdqn.run.interrupt import StopRequest
from jaxdqn.run.progress import Progress
from jaxdqn.storage.jsonl import Record
from jaxdqn.types import SUMMED_METRICS, Counter, Counters, Metrics, TrainState, counter_int


class _Flight(NamedTuple):
    """Dispatched chunk, or part of a chunk, whose metrics have not been read."""

    report: tuple[Metrics, Counters]
    iterations: int
    started: float


class ChunkRunner:
    """Run chunks, and check for a stop request between the parts of a long chunk.

    The duration of the first chunk determines the size of a part. If chunks are long, a program for
    one part is compiled in another thread while the next chunk runs. Without ``max_seconds`` the
    first chunk is not divided. With ``max_seconds`` the first chunk is run in parts of
    ``first_part`` iterations, and so are later long chunks until the program for their parts is
    compiled. The state after a chunk is bitwise identical however the chunk is divided. The metrics
    are equal up to rounding of sums and means.
    """

    def __init__(self, config: Config, programs: Programs, progress: Progress) -> None:
        self._config, self._programs, self._progress = config, programs, progress
        self._first_part = first_part(config, programs.least_first_part)
        self._measured = False
        """True if this process has measured the duration of a chunk."""
        self._flight: _Flight | None = None
        self._read_at = 0.0
        """Time at which the last metrics were read."""

    @property
    def in_flight(self) -> bool:
        """True if the next chunk has been dispatched; the newest state is then its result."""
        return self._flight is not None

    def drop(self) -> None:
        """Forget the chunk in flight, whose state the caller drops too."""
        self._flight = None

    def run(
        self, state: TrainState, stop: StopRequest, *, ahead: bool = False
    ) -> tuple[TrainState, tuple[Metrics, float] | None]:
        """Run one chunk, or the rest of an interrupted chunk.

        Args:
            state: newest state.
            stop: request to stop.
            ahead: if chunks are short, dispatch the next chunk before the metrics of this one are
                read, so that the device does not wait for the host.

        Returns:
            The state, and a pair of the chunk's metrics and its duration in seconds. The pair is
            None if a stop request interrupted the chunk; ``Progress.partial`` then holds the
            finished part.
        """
        progress = self._progress
        while True:
            flight = self._flight
            if flight is None:
                state, flight = self._dispatch(state)
            self._flight = None
            if ahead and self._is_short(flight):
                state, self._flight = self._dispatch(state)
            self._record(flight)
            assert progress.partial is not None
            if progress.partial["iterations"] >= self._config.iterations_per_chunk:
                break
            if stop_agreed(stop):
                return state, None
        partial, progress.partial = progress.partial, None
        progress.chunk += 1
        metrics = metrics_of(partial["metrics"])
        progress.skipped = (np.asarray(progress.skipped) + metrics.skipped).tolist()
        return state, (metrics, partial["seconds"])

    def _next_program(self) -> tuple[Chunk, int]:
        """Return the next program to call and its number of iterations."""
        done = 0 if self._progress.partial is None else self._progress.partial["iterations"]
        size = self._next_size(done)
        if size == self._config.iterations_per_chunk:
            return self._programs.chunk, size
        return self._programs.part_of_chunk(size).result(), size

    def _next_size(self, done: int) -> int:
        """Return the iterations to run next in a chunk of which ``done`` are finished."""
        chunk, part = self._config.iterations_per_chunk, self._progress.part_iterations
        first, left = self._first_part, chunk - done
        if part is not None:
            if first is not None:
                part = divide_first_part(self._config, first, part)
            ready = _are_ready(self._programs_for(part))
            if ready or (done and first is None):
                return min(part, left)
        if first is not None and (done or part is not None or not self._measured):
            self._programs_for(first)
            return min(first, left)
        return left

    def _programs_for(self, part: int) -> list[Future[Chunk]]:
        """Return the programs for a chunk in parts: for a part, and for a shorter last part."""
        last = self._config.iterations_per_chunk % part
        return [self._programs.part_of_chunk(size) for size in (part, last) if size]

    def _is_short(self, flight: _Flight) -> bool:
        """Return whether this is a whole chunk and chunks are too short to be divided.

        Return False for the first chunk of a process, because the speed is not known yet.
        """
        whole = flight.iterations == self._config.iterations_per_chunk
        return whole and self._read_at > 0 and self._progress.part_iterations is None

    def _dispatch(self, state: TrainState) -> tuple[TrainState, _Flight]:
        """Call the next program; if it fails on the host, record the finished iterations."""
        program, iterations = self._next_program()
        started = time.perf_counter()
        try:
            state, report = program(state)
        except EnvironmentFailed as failed:
            if failed.report is not None:
                self._record(_Flight(failed.report, failed.iterations, started))
            raise
        return state, _Flight(report, self._programs.iterations_done(iterations), started)

    def _record(self, flight: _Flight) -> None:
        """Wait for the results of a program; add counts, time and metrics to the progress."""
        progress, iterations = self._progress, flight.iterations
        metrics, counters = jax.device_get(flight.report)
        # A chunk that was dispatched ahead begins when the previous chunk ends.
        started, self._read_at = max(flight.started, self._read_at), time.perf_counter()
        seconds = self._read_at - started
        progress.train_seconds += seconds
        progress.totals = totals(counters)
        plain = jax.tree.map(lambda value: np.asarray(value).tolist(), metrics._asdict())
        part = {"iterations": iterations, "seconds": seconds, "metrics": plain}
        progress.partial = part if progress.partial is None else add_parts(progress.partial, part)
        if progress.part_iterations is None:
            self._measure(progress.partial, part)

    def _measure(self, finished: Record, part: Record) -> None:
        """Set the iterations per part from the duration of a chunk.

        In an unfinished chunk, estimate that duration from the newest part, and set the iterations
        only if such parts take too long. The first part of a chunk gives no estimate, because it
        may include costs that occur once.

        Args:
            finished: all finished iterations of the chunk.
            part: newest part of the chunk, which ``finished`` includes.
        """
        chunk, first = self._config.iterations_per_chunk, self._first_part
        if finished["iterations"] >= chunk:
            self._measured = True
            self._progress.part_iterations = self._agreed_part(finished["seconds"])
        elif first is not None and finished["iterations"] > part["iterations"] > 0:
            size = self._agreed_part(part["seconds"] * chunk / part["iterations"])
            if size is not None and size < first:
                self._progress.part_iterations = size

    def _agreed_part(self, seconds: float) -> int | None:
        return multihost.broadcast(lambda: self._part(seconds))

    def _part(self, seconds: float) -> int | None:
        return part_for_duration(self._config, seconds)


def add_parts(first: Record, second: Record) -> Record:
    """Merge two consecutive parts of a chunk into one, as plain values for a checkpoint.

    Args:
        first: ``iterations``, ``seconds`` and ``metrics``, leaves [...] or [P, ...].
        second: the following part, in the same form.
    """
    sizes = first["iterations"], second["iterations"]
    before, after = first["metrics"], second["metrics"]
    metrics: Record = {
        name: _add_metric(name, before, after, sizes)
        for name in Metrics._fields
        if name not in ("extra", "illegal", "diagnostics")
    }
    # A checkpoint of an earlier version contains no custom metrics and no masks.
    metrics["illegal"] = _add_illegal(before.get("illegal", ()), after.get("illegal", ()))
    metrics["extra"] = {
        name: _weighted_mean(values, after["extra"][name], sizes)
        for name, values in before.get("extra", {}).items()
    }
    one, other = dict(before.get("diagnostics", ())), dict(after.get("diagnostics", ()))
    # A resumed run may have switched diagnostics on or off.
    metrics["diagnostics"] = {
        name: _weighted_mean(one[name], other[name], sizes) for name in one if name in other
    }
    return {
        "iterations": sum(sizes),
        "seconds": first["seconds"] + second["seconds"],
        "metrics": jax.tree.map(lambda value: np.asarray(value).tolist(), metrics),
    }


def metrics_of(plain: Record) -> Metrics:
    """Convert the plain values of a part to metrics with array leaves."""
    dicts = ("extra", "diagnostics")
    fields: Any = {name: np.asarray(value) for name, value in plain.items() if name not in dicts}
    diagnostics = dict(plain.get("diagnostics", ()))
    fields["diagnostics"] = {name: np.asarray(value) for name, value in diagnostics.items()}
    fields["illegal"] = _add_illegal(plain.get("illegal", ()), ())
    extra: Any = {name: np.asarray(value) for name, value in plain.get("extra", {}).items()}
    return Metrics(**fields, extra=extra)


def _add_metric(name: str, first: Record, second: Record, sizes: Sequence[int]) -> Any:
    before, after = np.asarray(first[name]), np.asarray(second[name])
    if name == "lost":  # a property of the last parameters
        return after
    if name == "first_skipped":
        # ``first_skipped`` counts from the start of the chunk; invalid if nothing was skipped.
        later = np.asarray(first["gradient_steps"]) + after
        return np.where(np.asarray(first["skipped"]) > 0, before, later)
    if name in SUMMED_METRICS:
        return before.astype(np.float64) + after if before.dtype.kind == "f" else before + after
    return _weighted_mean(before, after, sizes)


def _add_illegal(first: Any, second: Any) -> Any:
    """Add two counts of illegal actions; a count is empty if there are no masks."""
    given = [np.asarray(count) for count in (first, second) if np.size(count)]
    return np.sum(given, axis=0) if given else ()


def _weighted_mean(before: Any, after: Any, sizes: Sequence[int]) -> Any:
    one, other = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return (one * sizes[0] + other * sizes[1]) / max(1, sum(sizes))


def stop_agreed(stop: StopRequest) -> bool:
    """Return True on every process if any process has a stop request."""
    reason = multihost.first_stop_reason(stop.reason)
    if reason is not None:
        stop.record(reason)
    return reason is not None


def totals(counters: Counters) -> Record:
    """Return the counters as Python ints, summed over all learners."""

    def count(counter: Counter) -> int:
        each = zip(np.ravel(counter.high), np.ravel(counter.low), strict=True)
        return sum(counter_int(Counter(high, low)) for high, low in each)

    return {
        "env_steps": count(counters.env_steps),
        "rows": count(counters.rows),
        "gradient_steps": count(counters.gradient_steps),
    }


def _are_ready(programs: Sequence[Future[Chunk]]) -> bool:
    """Return True if the programs can be called without waiting for their compilation.

    With several processes always return True, so that all call the same program, after waiting for
    it.
    """
    return jax.process_count() > 1 or all(program.done() for program in programs)
