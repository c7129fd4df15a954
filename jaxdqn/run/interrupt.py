"""Requests to stop a run: signals and a deadline."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

from jaxdqn.config.options import CHECKPOINT_SIGNALS
from jaxdqn.errors import RunStopped

COMPILING = "compile-start"
"""Name prefix of the threads that compile the initial programs of a run."""


class StopRequest:
    """Request to stop a run; truthy once the request has been made."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._deadline = math.inf

    def __bool__(self) -> bool:
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """Name of the signal, ``deadline``, or None before a request."""
        if self._reason is None and time.perf_counter() >= self._deadline:
            self._reason = "deadline"
        return self._reason

    def set_deadline(self, deadline: float) -> None:
        """Make the request when ``time.perf_counter()`` reaches ``deadline``."""
        self._deadline = deadline

    def record(self, reason: str) -> None:
        """Record a request from another process."""
        self._reason = reason

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        """Record a signal; a second SIGINT raises ``KeyboardInterrupt`` at once."""
        if self._reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._reason = signal.Signals(number).name

    def check(self) -> None:
        """Check, before the run trains, that no stop has been requested.

        Raises:
            RunStopped: if a stop has been requested.
        """
        reason = self.reason
        if reason is not None:
            raise RunStopped(reason)


@contextmanager
def stop_on_signals(names: Collection[str] = CHECKPOINT_SIGNALS) -> Iterator[StopRequest]:
    """Turn signals inside the ``with`` block into a ``StopRequest``.

    Only Python's main thread may handle signals; in another thread no signal is recorded.

    Args:
        names: names of the signals, in addition to SIGINT. A signal that the process ignores, such
            as SIGHUP under ``nohup``, remains ignored.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # None stands for a handler that was not installed from Python: restore the default.
    before = {number: signal.signal(number, stop.handle_signal) for number in handled(names)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def is_compiling() -> bool:
    """Return True if threads are still compiling programs of a stopped run."""
    return any(thread.name.startswith(COMPILING) for thread in threading.enumerate())


def handled(names: Collection[str]) -> list[signal.Signals]:
    """Return SIGINT and the named signals, except signals that the process ignores."""
    numbers = [signal.Signals[name] for name in names]
    return [
        signal.SIGINT,
        *(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN),
    ]
