"""Learners that train until their next evaluation, and evaluations in gymnasium."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

ROWS_PER_EVALUATION = 5_000
"""Minimum number of rows between evaluations."""

EPISODES = 100
LIMIT = 500
"""Environment steps after which an episode of CartPole-v1 is truncated."""


class Learner(NamedTuple):
    """A peer's learner of one seed."""

    advance: Callable[[], int]
    """Train until the next evaluation; return the rows so far."""
    evaluate: Callable[[int], float]
    """Return the mean return of greedy episodes; the argument seeds them."""
    rows: int
    """Budget."""


Prepared = tuple[float, dict[str, Any], Callable[[int], Learner]]
"""Seconds of compilation, settings, and ``start(seed) -> Learner``."""


def play(environments: Any, greedy: Callable[[Any], Any], key: int) -> float:
    """Return the mean return of the first episode of each environment of a vector."""
    import numpy as np

    obs, _ = environments.reset(seed=EPISODES * key)
    running, total = np.ones(EPISODES, bool), np.zeros(EPISODES)
    while running.any():
        obs, reward, terminated, truncated, _ = environments.step(greedy(obs))
        total += running * reward
        running &= ~(terminated | truncated)
    return float(total.mean())
