"""Plans of the scaling benchmark: the amount of measurement and the sizes."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.timing import Effort


class Plan(NamedTuple):
    """Amount of measurement, and the device counts and population sizes to measure."""

    effort: Effort
    devices: tuple[int, ...]
    learners: tuple[int, ...]


FULL = Plan(Effort(rounds=9, seconds=0.3, iterations=64), (1, 2, 4, 8), (1, 4, 16, 64))
QUICK = Plan(Effort(rounds=3, seconds=0.05, iterations=16, quick=True), (1, 2), (1, 4))
