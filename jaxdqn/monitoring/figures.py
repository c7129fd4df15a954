"""Metric values of a record by name, for loggers that send them to other programs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

from jaxdqn.errors import reject
from jaxdqn.storage.jsonl import Record

MOST_LEARNERS = 256
"""Maximum number of learners whose values are sent individually; for larger populations only the
means are sent."""

TOTALS = ("rows", "env_steps", "gradient_steps")
"""Running totals, the possible x-axes of metrics."""

_HISTOGRAM = "_histogram"


class Figures(NamedTuple):
    """Metric values of one record. Values that are None or text in the record are omitted."""

    scalars: dict[str, float]
    """Scalars by name; they may be NaN or infinite."""
    histograms: dict[str, list[float]]
    """Fractions of the bins of each histogram, by name without ``_histogram``."""


def figures_of(record: Record) -> Figures:
    """Return the values of a ``metrics`` or ``evaluation`` record, without values per learner."""
    scalars, histograms = {}, {}
    for name, value in record.items():
        if name.endswith(_HISTOGRAM):
            histograms[name.removesuffix(_HISTOGRAM)] = value
        elif _is_scalar(value):
            scalars[name] = float(value)
    return Figures(scalars, histograms)


def learner_figures(record: Record) -> list[Figures]:
    """Return the values of each learner; empty for a single learner or for more than the limit.

    The value of a learner in an evaluation is its mean return.
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


def plain_config(record: Record) -> dict[str, Any]:
    """Return the configuration of a ``start`` record, with sequences and None as text."""
    config = record["config"]
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in config.items()
    }


def reject_missing(name: str, value: Any, package: str, extra: str) -> NoReturn:
    """Raise a ``ValueError`` for a logger whose package is not installed."""
    reject(
        name, value, f'used with {package}, which is not installed; pip install "jaxdqn[{extra}]"'
    )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(scalars: dict[str, float]) -> dict[str, float]:
    """Return the finite scalars."""
    return {name: value for name, value in scalars.items() if math.isfinite(value)}
