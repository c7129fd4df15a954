"""Measure the cells of one section, in a separate process.

``python -m benchmarks.accelerator.worker REQUEST`` is one such process; the request is JSON. Each
section has its own process for three reasons: a crash or exhausted memory ends this section only;
its time is limited by ending the process; and the peak of device memory is counted per process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, NamedTuple

from benchmarks.accelerator.plan import FULL, TINY, Cell, Sizes
from benchmarks.accelerator.store import Store

COMPILE_SHARE = 0.65
"""Share of a section's time after which measurement starts, even if programs are not compiled."""

RUNNING = "the process ended while it ran"
"""Failure of a cell that was started and has no result."""


NO_TIME = "the time of the section was over"
"""Failure of a cell that was not started."""


class Request(NamedTuple):
    """Section to measure."""

    section: str
    out: str
    """Directory of results."""
    seconds: float
    launch: str
    """Identifier of this call of the command. Cells that failed in an earlier call are retried."""
    again: bool = False
    """Repeat cells that already have results."""
    tiny: bool = False
    peers: tuple[str, ...] = ()
    peer_python: str = sys.executable
    """Interpreter in which the peers are installed."""

    @property
    def sizes(self) -> Sizes:
        """Amount of work."""
        return TINY if self.tiny else FULL


def measure_section(request: Request, cells: Sequence[Cell], stamped: dict[str, Any]) -> None:
    """Measure the cells that have no result yet, and write each at once.

    A cell that raises is recorded with its error, and the others are measured.
    """
    store, deadline = Store(request.out), time.perf_counter() + request.seconds
    known = store.read(request.section)
    todo = [cell for cell in cells if _is_to_do(known.get(cell.name), request, stamped)]
    base = {"launch": request.launch, "tiny": request.tiny, "stamp": stamped}
    compiling = _compile_all(todo, time.perf_counter() + COMPILE_SHARE * request.seconds)
    for cell in todo:
        order = [each.name for each in cells].index(cell.name)
        left = deadline - time.perf_counter()
        record = {**base, "order": order}
        if left <= 0:
            store.write(request.section, cell.name, {**record, "failed": NO_TIME})
            continue
        store.write(request.section, cell.name, {**record, "failed": RUNNING})
        started = time.perf_counter()
        try:
            future = compiling.get(cell.name)
            if future is not None:
                future.result(timeout=0)
            # The remaining cells share the remaining time equally.
            share = left / (len(todo) - todo.index(cell))
            record["result"] = cell.measure(share)
        except Exception as error:
            record["failed"] = _reason(error)
        record["seconds"] = time.perf_counter() - started
        record["memory"] = device_memory()
        store.write(request.section, cell.name, record)
        print(_line(request.section, cell.name, record), flush=True)


def device_memory() -> dict[str, int] | None:
    """Return the bytes in use on the device, their peak in this process and the limit, if known."""
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if not stats:
        return None
    names = ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")
    return {name: int(stats[name]) for name in names if name in stats}


def is_of_device(record: dict[str, Any], stamped: dict[str, Any]) -> bool:
    """Return whether a record was measured on the device and with the versions of a stamp."""
    return all(record["stamp"][name] == stamped[name] for name in ("device_kind", "versions"))


def _is_to_do(record: dict[str, Any] | None, request: Request, stamped: dict[str, Any]) -> bool:
    """Return whether a cell must be measured, because it failed or has no result of this device."""
    if record is None:
        return True
    if record["launch"] == request.launch:
        return False
    same = record["tiny"] == request.tiny and is_of_device(record, stamped)
    return request.again or "result" not in record or not same


def _compile_all(cells: Sequence[Cell], until: float) -> dict[str, Future[Any]]:
    """Compile the programs of all cells; return when all are compiled, or at the time ``until``."""
    prepared = [(cell.name, cell.prepare) for cell in cells if cell.prepare is not None]
    if not prepared:
        return {}
    pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1))
    futures: dict[str, Future[Any]] = {}
    for name, prepare in prepared:
        futures[name] = pool.submit(_traced(prepare))
    pending = list(futures.values())
    while pending and time.perf_counter() < until:
        try:
            pending[0].exception(timeout=max(0.01, min(0.5, until - time.perf_counter())))
        except FutureTimeout:
            continue
        pending = [future for future in pending if not future.done()]
    # XLA cannot be stopped; compilations in progress end with the process.
    pool.shutdown(wait=False, cancel_futures=True)
    return futures


def _traced(prepare: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """Trace a cell and return its compilation; a tracing error is raised by the compilation."""
    try:
        return prepare()
    except Exception as error:
        return _raising(error)


def _raising(error: Exception) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


def _reason(error: Exception) -> str:
    if isinstance(error, FutureTimeout | CancelledError):
        return "not compiled in the time of the section"
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0].strip()[:500]}"


def _line(section: str, cell: str, record: dict[str, Any]) -> str:
    what = f"failed: {record['failed']}" if "failed" in record else "measured"
    return f"{section}, {cell}: {what} ({record['seconds']:.1f} s)"


def main(argv: Sequence[str]) -> int:
    """Measure the section of a request."""
    request = Request(**json.loads(argv[0]))
    from benchmarks.accelerator.sections import cells_of
    from benchmarks.report import stamp
    from benchmarks.timing import compile_cold

    compile_cold()
    started = time.perf_counter()
    cells = cells_of(request.section, request.sizes, tuple(request.peers), request.peer_python)
    spent = time.perf_counter() - started
    measure_section(request._replace(seconds=request.seconds - spent), cells, stamp())
    sys.stdout.flush()
    os._exit(0)  # do not wait for compilations in progress


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
