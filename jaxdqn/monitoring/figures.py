"""Figures of a record by name, for loggers that send them to other programs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import jax

from jaxdqn.errors import reject
from jaxdqn.storage.jsonl import Record

MOST_LEARNERS = 256
"""Learners of a population whose figures are sent one by one; of more only the means are."""

TOTALS = ("rows", "env_steps", "gradient_steps")
"""Running totals, by which figures are ordered."""

_HISTOGRAM = "_histogram"


class Figures(NamedTuple):
    """Figures of one record. A value that is None or a text in the record is absent."""

    scalars: dict[str, float]
    """A value that is not finite is NaN or infinite."""
    histograms: dict[str, list[float]]
    """Shares of the bins by name, without ``_histogram``."""


def figures_of(record: Record) -> Figures:
    """Return the figures of a ``metrics`` or ``evaluation`` record; without those of learners."""
    scalars, histograms = {}, {}
    for name, value in record.items():
        if name.endswith(_HISTOGRAM):
            histograms[name.removesuffix(_HISTOGRAM)] = value
        elif _is_scalar(value):
            scalars[name] = float(value)
    return Figures(scalars, histograms)


def learner_figures(record: Record) -> list[Figures]:
    """Return the figures of each learner of a population; none for one learner, or for too many.

    An evaluation holds one value of each learner, its mean return.
    """
    learners = record.get("learners")
    if isinstance(learners, list):
        learners = {"return_mean": learners}
    if not learners or len(next(iter(learners.values()))) > MOST_LEARNERS:
        return []
    size = len(next(iter(learners.values())))
    return [
        figures_of({name: values[index] for name, values in learners.items()})
        for index in range(size)
    ]


def device_bytes() -> int | None:
    """Return the memory in use on the first device in bytes; None on CPU, which has no count."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats.get("bytes_in_use")


def plain_config(record: Record) -> dict[str, Any]:
    """Return the configuration in a ``start`` record with sequences and None as text."""
    config = record["config"]
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in config.items()
    }


def reject_missing(name: str, value: Any, package: str, extra: str) -> NoReturn:
    """Raise the ``ValueError`` of a logger whose package is not installed."""
    reject(
        name, value, f'used with {package}, which is not installed; pip install "jaxdqn[{extra}]"'
    )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(scalars: dict[str, float]) -> dict[str, float]:
    """Return the finite scalars."""
    return {name: value for name, value in scalars.items() if math.isfinite(value)}
