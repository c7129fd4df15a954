"""What asks a run to end: signals and a deadline, kept until it can."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASK_TO_END = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether the run has been asked to end; true once it has."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._deadline = math.inf

    def __bool__(self) -> bool:
        return self.why is not None

    @property
    def why(self) -> str | None:
        """What asked: the signal's name, ``deadline``, or None."""
        if self._signal is not None:
            return self._signal
        if time.perf_counter() >= self._deadline:
            self._signal = "deadline"
        return self._signal

    def at(self, deadline: float) -> None:
        """Ask when ``time.perf_counter()`` is at ``deadline``."""
        self._deadline = deadline

    def because(self, why: str) -> None:
        """Ask for a reason that is not this process's own."""
        self._signal = why

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a second interrupt does not wait for the run."""
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Hold back SIGINT and SIGTERM inside the ``with`` block and note that they came.

    Only Python's main thread may handle signals; in another, none are noted.
    """
    asked = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    # None stands for a handler that was not installed from Python: put back the default.
    before = {number: signal.signal(number, asked.note) for number in _ASK_TO_END}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
