"""The learners of a population as tables, for a person."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxdqn.monitoring.terminal import is_number, number
from jaxdqn.storage.jsonl import Record

_OF_EVERY_LEARNER = (
    "learner",
    "seed",
    "eval_return_mean",
    "best_eval_return_mean",
    "seconds_to_solve",
    "diverged_at_chunk",
)


def population_tables(learners: Sequence[Record]) -> str:
    """Return what a summary says of its learners: of a sweep's combinations, and of each one."""
    tables = [learner_table(learners)]
    if len({learner["seed"] for learner in learners}) not in (1, len(learners)):
        tables.insert(0, sweep_table(learners))
    return "\n\n".join(tables)


def learner_table(learners: Sequence[Record], most: int = 20) -> str:
    """Return what a summary says of each learner as a table, the best first.

    Args:
        learners: ``learners`` of the summary.
        most: rows, after which the rest are counted only.
    """
    swept = [name for name in learners[0] if name not in _OF_EVERY_LEARNER]
    head = ["learner", "seed", *swept, "best return", "last return", "solved after"]
    ordered = sorted(learners, key=_place)
    rows = [
        [
            str(learner["learner"]),
            str(learner["seed"]),
            *(f"{learner[name]:g}" for name in swept),
            number(learner["best_eval_return_mean"], ".2f"),
            number(learner["eval_return_mean"], ".2f"),
            _fate(learner),
        ]
        for learner in ordered[:most]
    ]
    lines = _aligned([head, *rows])
    if len(ordered) > most:
        lines.append(f"and {len(ordered) - most} more, in the summary")
    return "\n".join(lines)


def sweep_table(learners: Sequence[Record]) -> str:
    """Return what a summary says of each combination of a sweep, over its seeds, the best first.

    Args:
        learners: ``learners`` of the summary of a run with a sweep.
    """
    swept = [name for name in learners[0] if name not in _OF_EVERY_LEARNER]
    points: dict[tuple[float, ...], list[Record]] = {}
    for learner in learners:
        points.setdefault(tuple(learner[name] for name in swept), []).append(learner)

    def mean(point: list[Record], name: str) -> float | None:
        values = [learner[name] for learner in point if is_number(learner[name])]
        return sum(values) / len(values) if values else None

    ordered = sorted(
        points.items(), key=lambda item: -(_or_least(mean(item[1], "best_eval_return_mean")))
    )
    rows = [
        [
            *(f"{value:g}" for value in values),
            str(len(point)),
            number(mean(point, "best_eval_return_mean"), ".2f"),
            number(mean(point, "eval_return_mean"), ".2f"),
            str(sum(learner["seconds_to_solve"] is not None for learner in point)),
        ]
        for values, point in ordered
    ]
    return "\n".join(_aligned([[*swept, "seeds", "best return", "last return", "solved"], *rows]))


def _place(learner: Record) -> tuple[bool, float]:
    """Order learners by their best return, those that diverged after the others."""
    return learner["diverged_at_chunk"] is not None, -_or_least(learner["best_eval_return_mean"])


def _or_least(value: float | None) -> float:
    return -math.inf if value is None else value


def _fate(learner: Record) -> str:
    texts = []
    if learner["seconds_to_solve"] is not None:
        texts.append(f"{learner['seconds_to_solve']:.2f} s")
    if learner["diverged_at_chunk"] is not None:
        texts.append(f"diverged in chunk {learner['diverged_at_chunk']}")
    return ", ".join(texts) or "-"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    ]
