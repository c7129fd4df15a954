"""Registry of acceleration techniques, and their common timing functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

from benchmarks import workloads
from benchmarks.timing import Case, Effort, Interval, alternate, ratio
from jaxdqn.config.config import Config
from jaxdqn.errors import known_name

FULL = Effort(rounds=9, seconds=0.3, iterations=200)
QUICK = Effort(rounds=3, seconds=0.05, iterations=50, quick=True)


class Result(NamedTuple):
    """Speed-up of one case of a technique over its baseline."""

    case: str
    against: str
    """Baseline."""
    speed_up: Interval
    """Rate over the rate of the baseline; below 1 the case is slower."""
    of: str
    """Unit of work that the rates count."""
    notes: str = ""
    """Other measured or computed quantities, such as bytes or the age of the training data."""


class Technique(NamedTuple):
    """Technique that makes training faster, or a variant of training and its cost."""

    name: str
    principle: str
    source: str
    """Paper or document that describes it."""
    claimed: str
    """Speed-up that the source claims."""
    advantages: str
    drawbacks: str
    when: str
    """Situation in which to use it."""
    measured_on: str
    measure: Callable[[Effort], list[Result]]


class Skipped(Exception):
    """A technique cannot be measured here; the argument is the reason."""


TECHNIQUES: dict[str, Technique] = {}


def register(technique: Technique) -> None:
    """Add a technique to the registry.

    Raises:
        ValueError: if a field is empty or the name is already registered.
    """
    for field, value in technique._asdict().items():
        if not value:
            raise ValueError(f"{field}={value!r}: must not be empty (technique {technique.name!r})")
    if technique.name in TECHNIQUES:
        raise ValueError(f"name={technique.name!r}: must not be registered twice")
    TECHNIQUES[technique.name] = technique


def select_techniques(names: Sequence[str]) -> list[Technique]:
    """Return the named techniques, or all if no name is given.

    Raises:
        ValueError: if a technique is unknown; the message gives the nearest names.
    """
    for name in names:
        if name not in TECHNIQUES:
            raise ValueError(
                f"only={name!r}: must be {known_name('technique', name, list(TECHNIQUES))}"
            )
    return [TECHNIQUES[name] for name in names or TECHNIQUES]


def speed_ups(
    cases: Mapping[str, Case],
    effort: Effort,
    *,
    of: str,
    against: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Result]:
    """Time the cases alternately; return the speed-up of each case over the baseline.

    Args:
        cases: cases by name, their work in units of ``of``.
        effort: amount of measurement.
        of: unit of work.
        against: name of the baseline; None selects the first case.
        notes: ``Result.notes`` by name of the case.
    """
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    return compared(times, of=of, against=against, notes=notes)


def compared(
    seconds: Mapping[str, Sequence[float]],
    *,
    of: str,
    against: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Result]:
    """Return the speed-up of each case from seconds per unit of work, [rounds]."""
    against = against or next(iter(seconds))
    return [
        Result(
            name, against, ratio(seconds[against], seconds[name]), of, (notes or {}).get(name, "")
        )
        for name in seconds
        if name != against
    ]


def learning_cases(
    configs: Mapping[str, Config],
    effort: Effort,
    work: Callable[[Config], float] = lambda config: config.gradient_steps_per_iteration,
) -> dict[str, Case]:
    """Compile the learning iterations of all configurations in parallel.

    Args:
        configs: configurations by name.
        effort: amount of measurement.
        work: returns the units of work per iteration; by default gradient steps.
    """
    # XLA releases the GIL while it compiles, so one program per core compiles at the same time.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        prepared = list(pool.map(lambda each: _prepared(each, effort.iterations), configs.values()))
    return {
        name: case._replace(work=case.work * work(config))
        for (name, config), case in zip(configs.items(), prepared, strict=True)
    }


@lru_cache(maxsize=4)
def _prepared(config: Config, iterations: int) -> Case:
    """Return compiled iterations; techniques with the same baseline share its compilation."""
    return workloads.prepare_learning(config, iterations).case
