"""Requests to stop a run: signals and a deadline."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A request to stop a run; true once it has been made."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._deadline = math.inf

    def __bool__(self) -> bool:
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """The signal's name, ``deadline``, or None before a request."""
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


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM inside the ``with`` block into a ``StopRequest``.

    Only Python's main thread may handle signals; in another thread none are recorded.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # None stands for a handler that was not installed from Python: restore the default.
    before = {number: signal.signal(number, stop.handle_signal) for number in _STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
