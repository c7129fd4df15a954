"""Registry of acceleration techniques."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks import workloads
from benchmarks.timing import Case, Interval, alternate, ratio
from jaxdqn.config.config import Config
from jaxdqn.errors import suggest


class Effort(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    """Of one measurement, at least about."""
    iterations: int
    """In one call of a compiled scan."""
    quick: bool
    """Whether to leave out the larger cases."""


FULL = Effort(rounds=9, seconds=0.3, iterations=200, quick=False)


QUICK = Effort(rounds=3, seconds=0.05, iterations=50, quick=True)


class Result(NamedTuple):
    """One case of a technique against what it is compared with."""

    case: str
    against: str
    speed_up: Interval
    """How many times faster; below 1 it is slower."""
    of: str
    """What is counted a second."""


class Technique(NamedTuple):
    """A way to make training fast, or something that training may need and what it costs."""

    name: str
    principle: str
    good_for: str
    costs: str
    measured_on: str
    measure: Callable[[Effort], list[Result]]


TECHNIQUES: dict[str, Technique] = {}


def register(technique: Technique) -> None:
    """Add a technique to the table.

    Raises:
      ValueError: if a field is empty, or the name is taken.
    """
    for field, value in technique._asdict().items():
        if not value:
            raise ValueError(f"{field}={value!r}: must not be empty (technique {technique.name!r})")
    if technique.name in TECHNIQUES:
        raise ValueError(f"name={technique.name!r}: must not be registered twice")
    TECHNIQUES[technique.name] = technique


def chosen(names: Sequence[str]) -> list[Technique]:
    """Return the techniques of these names, or all.

    Raises:
      ValueError: if there is no such technique, with the nearest names.
    """
    for name in names:
        if name not in TECHNIQUES:
            raise ValueError(f"only={name!r}: must be among {suggest(name, list(TECHNIQUES))}")
    return [TECHNIQUES[name] for name in names or TECHNIQUES]


def faster(
    cases: Mapping[str, Case], effort: Effort, *, of: str, against: str | None = None
) -> list[Result]:
    """Time cases in turn; return the speed-up of each over the one named ``against``.

    Args:
      cases: their work is counted in what is compared.
      against: the first case by default.
    """
    against = against or next(iter(cases))
    times = alternate(cases, rounds=effort.rounds, seconds=effort.seconds)
    return [
        Result(name, against, ratio(times[against], times[name]), of)
        for name in cases
        if name != against
    ]


def learning_cases(
    configs: Mapping[str, Config],
    effort: Effort,
    work: Callable[[Config], float] = lambda config: config.gradient_steps_per_iteration,
) -> dict[str, Case]:
    """Compile learning iterations of each configuration.

    Args:
      work: units of an iteration; gradient steps by default.
    """
    cases = {}
    for name, config in configs.items():
        case = workloads.prepare_learning(config, effort.iterations).case
        cases[name] = case._replace(work=case.work * work(config))
    return cases
