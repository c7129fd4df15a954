"""Targets for accelerators, and their comparison with results. Imports no JAX."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.accelerator.plan import GAMES
from benchmarks.report import short

Results = Mapping[str, Mapping[str, Any]]
"""Results of the cells of a section, by cell."""

SOLVE_SECONDS = 1.0
ENV_STEPS_PER_SECOND = 10e6
PQN_SECONDS = 20.0
SCORE_SECONDS = 30.0
POPULATION, POPULATION_RATIO = 64, 20.0


class Verdict(NamedTuple):
    """Target and its measured value."""

    target: str
    measured: str
    met: bool | None
    """None if it was not measured completely."""

    @property
    def text(self) -> str:
        """Verdict in words."""
        return {None: "not measured", True: "met", False: "missed"}[self.met]


def judge(sections: Mapping[str, Results], *, valid: bool) -> list[Verdict]:
    """Compare the results with the targets.

    Args:
        sections: results by section.
        valid: False if the figures were not measured on an accelerator at full size; then no target
            counts as measured.
    """
    verdicts = []
    for section, target, check in _TARGETS:
        measured, met = check(sections.get(section, {}))
        verdicts.append(Verdict(target, measured, met if valid else None))
    return verdicts


Checked = tuple[str, bool | None]


def _solve(results: Results) -> Checked:
    if not results:
        return "-", None
    times = [result["seconds_to_solve"] for result in results.values()]
    solved = [seconds for seconds in times if seconds is not None]
    text = f"{len(solved)} of {len(times)} seeds"
    if len(solved) < len(times):
        return text, False
    median = statistics.median(solved)
    return f"median {short(median)} s, {text}", median < SOLVE_SECONDS


def _rates(results: Results) -> Checked:
    if not results:
        return "-", None
    best = max(results, key=lambda name: results[name]["env_steps_per_second"])
    rate = results[best]["env_steps_per_second"]
    return f"{short(rate / 1e6)} million ({best})", rate >= ENV_STEPS_PER_SECOND


def _pqn(results: Results) -> Checked:
    if not results:
        return "-", None
    done = {name: each["train_seconds"] for name, each in results.items() if each["complete"]}
    text = f"{len(done)} of {len(GAMES)} games"
    if done:
        text += f", {short(min(done.values()))} to {short(max(done.values()))} s"
    # A game without a complete result is missed only if it has already taken too long.
    if any(result["train_seconds"] >= PQN_SECONDS for result in results.values()):
        return text, False
    return text, True if set(GAMES) <= set(done) else None


def _score(results: Results) -> Checked:
    times = {name: result["seconds_to_solve"] for name, result in results.items()}
    reached = {name: seconds for name, seconds in times.items() if seconds is not None}
    if not reached:
        spent = [result["train_seconds"] + result["eval_seconds"] for result in results.values()]
        long = any(seconds >= SCORE_SECONDS for seconds in spent)
        return ("not reached", False if long else None) if times else ("-", None)
    best = min(reached, key=lambda name: reached[name])
    return f"{short(reached[best])} s ({best})", reached[best] < SCORE_SECONDS


def _population(results: Results) -> Checked:
    one, many = results.get("1 learners"), results.get(f"{POPULATION} learners")
    if one is None or many is None:
        return "-", None
    ratio = many["gradient_steps_per_second"] / one["gradient_steps_per_second"]
    return f"{short(ratio)} x", ratio >= POPULATION_RATIO


_TARGETS: tuple[tuple[str, str, Callable[[Results], Checked]], ...] = (
    ("solve", f"CartPole solved in less than {SOLVE_SECONDS:g} s", _solve),
    ("rates", "10 million environment steps/s while learning", _rates),
    ("pqn", f"PQN, 10M frames of each MinAtar game in less than {PQN_SECONDS:g} s", _pqn),
    ("score", f"Breakout past published DQN (10) in less than {SCORE_SECONDS:g} s", _score),
    ("population", "64 learners at 20 x the throughput of one", _population),
)
