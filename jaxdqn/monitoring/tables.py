"""Text tables of the learners of a population."""

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
    "seconds_to_hold",
    "rows_to_hold",
    "learning_stability",
    "diverged_at_chunk",
    "skipped_gradient_steps",
)


def population_tables(learners: Sequence[Record]) -> str:
    """Return the table of the learners, preceded by the table of a sweep with several seeds."""
    tables = [learner_table(learners)]
    if len({learner["seed"] for learner in learners}) not in (1, len(learners)):
        tables.insert(0, sweep_table(learners))
    return "\n\n".join(tables)


def learner_table(learners: Sequence[Record], most: int = 20) -> str:
    """Return a table of the learners in a summary, the best first.

    Args:
        learners: ``learners`` of the summary.
        most: maximum number of rows; the remaining learners are only counted.
    """
    swept = [name for name in learners[0] if name not in _OF_EVERY_LEARNER]
    head = ["learner", "seed", *swept, "best return", "last return", "solved after"]
    ordered = sorted(learners, key=_rank)
    rows = [
        [
            str(learner["learner"]),
            str(learner["seed"]),
            *(f"{learner[name]:g}" for name in swept),
            number(learner["best_eval_return_mean"], ".2f"),
            number(learner["eval_return_mean"], ".2f"),
            _outcome(learner),
        ]
        for learner in ordered[:most]
    ]
    lines = _aligned([head, *rows])
    if len(ordered) > most:
        lines.append(f"and {len(ordered) - most} more, in the summary")
    return "\n".join(lines)


def sweep_table(learners: Sequence[Record]) -> str:
    """Return a table of the combinations of a sweep, averaged over seeds, the best first.

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
        points.items(), key=lambda item: -(_or_minus_inf(mean(item[1], "best_eval_return_mean")))
    )
    rows = [
        [
            *(f"{value:g}" for value in values),
            str(len(point)),
            number(mean(point, "best_eval_return_mean"), ".2f"),
            number(mean(point, "eval_return_mean"), ".2f"),
            str(sum(learner["seconds_to_solve"] is not None for learner in point)),
            str(sum(learner.get("seconds_to_hold") is not None for learner in point)),
        ]
        for values, point in ordered
    ]
    head = [*swept, "seeds", "best return", "last return", "solved", "held"]
    return "\n".join(_aligned([head, *rows]))


def _rank(learner: Record) -> tuple[bool, float]:
    """Return the sort key of a learner: by best return, with diverged learners last."""
    diverged = learner["diverged_at_chunk"] is not None
    return diverged, -_or_minus_inf(learner["best_eval_return_mean"])


def _or_minus_inf(value: float | None) -> float:
    return -math.inf if value is None else value


def _outcome(learner: Record) -> str:
    texts = []
    if learner["seconds_to_solve"] is not None:
        texts.append(f"{learner['seconds_to_solve']:.2f} s")
    if learner.get("seconds_to_hold") is not None:  # absent from summaries of earlier versions
        texts.append(f"held after {learner['seconds_to_hold']:.2f} s")
    if learner["diverged_at_chunk"] is not None:
        texts.append(f"diverged in chunk {learner['diverged_at_chunk']}")
    if learner.get("skipped_gradient_steps"):  # absent from summaries of earlier versions
        texts.append(f"{learner['skipped_gradient_steps']:,} gradient steps undone")
    return ", ".join(texts) or "-"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    ]
