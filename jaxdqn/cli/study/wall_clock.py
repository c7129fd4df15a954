"""Table of a study: seconds to the published score of each game.

Imports no JAX.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from jaxdqn.storage.jsonl import Record

PUBLISHED = {
    "Breakout-MinAtar": 10.0,
    "Asterix-MinAtar": 17.0,
    "Freeway-MinAtar": 50.0,
    "Seaquest-MinAtar": 20.0,
    "SpaceInvaders-MinAtar": 44.0,
}
"""Approximate returns of DQN after 5M frames, from the curves of Young and Tian 2019 (MinAtar: An
Atari-Inspired Testbed, arXiv:1903.03176)."""

_NOTE = (
    "Seconds of training and evaluation until the first evaluation of a seed with a mean greedy "
    "return of at least the published score of DQN after 5M frames (Young and Tian 2019): the "
    "median over the seeds, a seed that did not reach it counting as infinite, and the number of "
    "seeds that reached it. The published score is the return of training episodes, which "
    "explore and have no time limit, so this table compares presets, not implementations. "
    "Compilation is not included."
)
_SHARED = (
    "Seeds trained together share their seconds: each has the seconds of the complete run, not "
    "those that it would need alone ({counts} seeds at a time)."
)

Rows = Mapping[str, Mapping[str, Sequence[Record]]]
"""Results, one per seed, by label and environment."""


def wall_clock(rows: Rows, envs: Iterable[str]) -> str:
    """Return the table of seconds as Markdown; empty if no curve has seconds to a known score."""
    games = [env for env in envs if env in PUBLISHED]
    lines = []
    for env in games:
        cells = [_reached(row.get(env, ()), PUBLISHED[env]) for row in rows.values()]
        if any(cell is not None for cell in cells):
            lines.append([env, f"{PUBLISHED[env]:g}", *(cell or "not recorded" for cell in cells)])
    if not lines:
        return ""
    head = ["game", "score", *rows]
    parts = (_NOTE, shared_seconds(rows), markdown_table(head, lines))
    return "\n\n".join(part for part in parts if part)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shared_seconds(rows: Rows) -> str:
    """Return the sentence about seconds that seeds share; empty if every seed had its own run."""
    counts = {
        result.get("population", 1)
        for row in rows.values()
        for results in row.values()
        for result in results
    }
    together = sorted(count for count in counts if count > 1)
    return _SHARED.format(counts=" or ".join(map(str, together))) if together else ""


def seconds_to(curve: Record, score: float) -> float:
    """Return the seconds of the first evaluation with a return of at least ``score``.

    Infinite if there is none.
    """
    pairs = zip(curve["seconds"], curve["return_mean"], strict=True)
    return next(
        (seconds for seconds, mean in pairs if mean is not None and mean >= score), math.inf
    )


def _reached(results: Sequence[Record], score: float) -> str | None:
    """Return the median seconds of the seeds as text; None if a curve has no seconds."""
    if not results or not all("seconds" in result["curve"] for result in results):
        return None
    times = [seconds_to(result["curve"], score) for result in results]
    count = sum(seconds < math.inf for seconds in times)
    median = statistics.median(times)
    text = "not reached" if median == math.inf else f"{median:,.0f} s"
    return f"{text} ({count} of {len(times)})"
