"""Detection of held learners: consecutive evaluations that all reach the solve return."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from jaxdqn.config.config import Config
from jaxdqn.run.progress import Progress

HELD_EVALUATIONS = 10
"""Number of consecutive evaluations that must reach the solve return."""
HELD_SPACING_ROWS = 5_000
"""Minimum number of rows of a learner between two counted evaluations. An evaluation that follows
sooner is not counted, but it ends the series if it is below the solve return."""


def countable_evaluations(config: Config) -> int:
    """Return how many evaluations of a complete run can count towards a held solution."""
    every = config.chunks_per_evaluation
    rows = every * config.iterations_per_chunk * config.rows_per_iteration
    stride = -(-HELD_SPACING_ROWS // rows)  # evaluations from one that counts to the next
    evaluations, rest = divmod(config.num_chunks, every)
    counted = -(-evaluations // stride)
    # The evaluation at the end, if none is due there.
    end = rest * config.iterations_per_chunk * config.rows_per_iteration
    since = (
        (evaluations - 1 - (counted - 1) * stride) * rows + end if counted else HELD_SPACING_ROWS
    )
    return counted + (rest > 0 and since >= HELD_SPACING_ROWS)


def unholdable(config: Config) -> str | None:
    """Return why a run cannot end with ``stop_when="held"``, or None if it can."""
    if config.stop_when != "held":
        return None
    count = countable_evaluations(config)
    if count >= HELD_EVALUATIONS:
        return None
    return (
        f"stop_when='held' needs {HELD_EVALUATIONS} evaluations at least "
        f"{HELD_SPACING_ROWS:,} rows apart, and the budget has {count}: the run does not end "
        "before its budget; reduce eval_every or increase total_rows"
    )


def record_evaluation(
    progress: Progress,
    means: Sequence[float],
    solve_return: float,
    seconds: float,
    refuted: Collection[int] = (),
) -> None:
    """Add an evaluation to the series of each learner.

    Args:
        progress: progress of the run; updated in place.
        means: mean return of each learner.
        solve_return: return to reach.
        seconds: time on the run's clock.
        refuted: learners that reached the solve return, but not over fresh episodes.
    """
    rows = progress.totals["rows"] // len(means)
    for index, mean in enumerate(means):
        sound = progress.diverged_at[index] is None and index not in refuted
        passed = bool(mean >= solve_return) and sound
        progress.passed[index].append(passed)
        if not passed:
            progress.series[index], progress.series_rows[index] = 0, None
            continue
        last = progress.series_rows[index]
        if last is not None and rows - last < HELD_SPACING_ROWS:
            continue
        progress.series[index] += 1
        progress.series_rows[index] = rows
        if progress.series[index] == HELD_EVALUATIONS and progress.held_at[index] is None:
            progress.held_at[index], progress.held_rows[index] = seconds, rows


def stability(passed: Sequence[bool]) -> float | None:
    """Return the fraction of evaluations that reached the solve return, in their second half.

    Return None if there are no evaluations.

    Args:
        passed: one flag per evaluation of a learner, in order; True if it reached the solve return.
    """
    half = passed[len(passed) // 2 :]
    return sum(half) / len(half) if half else None
