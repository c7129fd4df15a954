"""Measurements of actors, replay shards and learners on Ray, each a run in new processes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

from benchmarks.arrangements import AGES, CASES, measure
from benchmarks.techniques.registry import Result, Skipped, compared
from benchmarks.timing import Effort, alternating

_ROWS = 60_000
_ROUNDS = 3
_APE_X = (
    *("--actors", "2", "--replay-shards", "2", "--n-step", "3", "--double"),
    *("--epsilon-schedule", "constant", "--epsilon-end", "0.4", "--epsilon-ladder", "7"),
)
_SERVER = ("--actors", "2", "--learners", "2", "--server-mode")


def measure_actors(effort: Effort) -> list[Result]:
    """Measure several actors relative to one actor."""
    return _compare(("1 actor", "2 actors", "4 actors"), effort)


def measure_shards(effort: Effort) -> list[Result]:
    """Measure two replay shards relative to one shard."""
    return _compare(("2 actors", "2 actors, 2 shards"), effort)


def measure_ape_x(effort: Effort) -> list[Result]:
    """Measure Ape-X relative to one program on the device with the same replay and batch."""
    return _compare(("one program (jit)", "Ape-X"), effort, {"Ape-X": _APE_X})


def measure_parameter_server(effort: Effort) -> list[Result]:
    """Measure two learners with a parameter server relative to one learner."""
    cases = ("2 learners, sync", "2 learners, async", "2 learners, async, int8")
    more = {
        "2 learners, sync, int8": (*_SERVER, "sync", "--compression", "int8"),
    }
    return _compare(("2 actors", *cases, *more), effort, more)


def _compare(
    names: Sequence[str], effort: Effort, more: Mapping[str, Sequence[str]] | None = None
) -> list[Result]:
    """Run arrangements alternately; compare gradient steps/s, with ages as notes.

    Raises:
        Skipped: if Ray is not installed, or with ``--quick``.
    """
    if importlib.util.find_spec("ray") is None:
        raise Skipped("Ray is not installed: pip install 'jaxdqn[ray]'")
    if effort.quick:
        raise Skipped("each run on Ray takes half a minute: left out with --quick")
    cases = {**CASES, **(more or {})}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    ages: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for name in alternating(names, min(_ROUNDS, effort.rounds)):
        measured = measure(cases[name], _ROWS)
        seconds[name].append(1.0 / measured["gradient_steps_per_second"])
        for age in AGES:
            if age in measured:
                ages[name].setdefault(age, []).append(measured[age])
    notes = {name: _note(found) for name, found in ages.items()}
    return compared(seconds, of="gradient steps", notes=notes)


def _note(ages: Mapping[str, Sequence[float]]) -> str:
    """Return the mean of each of ``AGES``: sample age in vector steps, others in gradient steps."""
    return ", ".join(
        f"{name.replace('_', ' ')} {sum(values) / len(values):.3g}" for name, values in ages.items()
    )
