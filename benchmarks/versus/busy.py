"""Use of the machine by other programs, which would distort a measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_POLL_SECONDS = 5.0


class Limits(NamedTuple):
    """Use of the machine above which it counts as busy."""

    load: float
    """Load average per core."""
    cpu_share: float
    """Share of the processors that are not idle."""


class Use(NamedTuple):
    """Use of the machine by other programs, while this one waits."""

    load: float | None
    """Load average per core over the last minute; None if it is not available."""
    cpu_share: float | None
    """Share of the processors that were not idle; None if it is not known."""

    def describe(self) -> str:
        """Return the use in words."""
        load = "unknown" if self.load is None else f"{self.load:.2f}"
        share = "unknown" if self.cpu_share is None else f"{self.cpu_share:.0%}"
        return f"load average for each core {load}, processors in use {share}"

    def exceeds(self, limits: Limits) -> bool:
        """Return whether the machine is busy."""
        load = self.load is not None and self.load > limits.load
        return load or (self.cpu_share is not None and self.cpu_share > limits.cpu_share)


def machine_use(seconds: float = 2.0) -> Use:
    """Return the use of the machine over some seconds in which this process waits."""
    before = _processor_times()
    time.sleep(seconds)
    after = _processor_times()
    share = None
    if before is not None and after is not None:
        total, idle = after[0] - before[0], after[1] - before[1]
        share = 1.0 - idle / total if total else 0.0
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None
    return Use(load, share)


def wait_until_quiet(
    limits: Limits,
    *,
    busy_ok: bool,
    patience: float,
    use: Callable[[], Use] = machine_use,
    sleep: Callable[[float], object] = time.sleep,
) -> Use:
    """Wait until other programs hardly use the machine; return its use.

    Args:
        limits: limits above which the machine counts as busy.
        busy_ok: return at once, even if the machine is busy.
        patience: seconds to wait, for example for the load of this program's own installations.
        use: returns the use of the machine.
        sleep: waits for some seconds.

    Raises:
        ValueError: if it stays busy; the message has the measured use.
    """
    waited, seen = 0.0, use()
    while seen.exceeds(limits) and not busy_ok:
        if waited >= patience:
            raise ValueError(
                f"the machine is busy: {seen.describe()}; must be at most {limits.load:.2f} and "
                f"{limits.cpu_share:.0%}; end other programs, or give --busy-ok"
            )
        sleep(_POLL_SECONDS)
        waited += _POLL_SECONDS
        seen = use()
    return seen


def _processor_times() -> tuple[int, int] | None:
    """Return the total and the idle ticks of all processors since boot."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    ticks = [int(field) for field in fields[:8]]
    return sum(ticks), ticks[3] + ticks[4]  # idle, and waiting for a disk
