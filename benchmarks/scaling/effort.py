"""Effort of the scaling benchmark."""

from __future__ import annotations

from typing import NamedTuple


class Effort(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    """Of one measurement."""
    iterations: int
    """In one call of a compiled scan."""
    devices: tuple[int, ...]
    learners: tuple[int, ...]


FULL = Effort(9, 0.3, 64, (1, 2, 4, 8), (1, 4, 16, 64))


QUICK = Effort(3, 0.05, 16, (1, 2), (1, 4))
