"""Outcome of a run as text."""

from __future__ import annotations

from typing import Any

from jaxdqn.monitoring.tables import population_tables


def outcome(summary: dict[str, Any]) -> str:
    """Return the summary of a run as a few lines of text."""
    learners = summary.get("learners", ())
    solved = _goals(summary, len(learners)) if summary["solve_return"] is not None else "done"
    if summary["interrupted"]:
        solved += f", interrupted ({summary['ended_by']}); --resume continues it"
    epsilon = summary["eval_epsilon"]
    kind = f"{epsilon:g}-greedy" if epsilon else "greedy"
    return (
        f"{solved}: {kind} return {summary['eval_return_mean']:.2f} at the end, "
        f"{summary['best_eval_return_mean']:.2f} at best, over {summary['eval_episodes']} episodes"
        "\n"
        f"{summary['env_steps']:,} environment steps ({summary['rows']:,} rows with resets), "
        f"{summary['gradient_steps']:,} gradient steps{_undone(summary)} in "
        f"{summary['train_seconds']:.2f} s of "
        f"training, {summary['eval_seconds']:.2f} s of evaluation, after "
        f"{summary['compile_seconds']:.2f} s of compilation\n"
        f"{summary['env_steps_per_second']:,.0f} environment steps/s, "
        f"{summary['gradient_steps_per_second']:,.0f} gradient steps/s"
        + _limit(summary.get("limited_by"))
        + (f"\n\n{population_tables(learners)}" if learners else "")
    )


def _limit(part: str | None) -> str:
    """Return the part that determines the speed of a run on Ray, as text."""
    if part is None:
        return ""
    other = "learner waits for the actors" if part == "actors" else "actors wait for the learner"
    return f"\nlimited by the {part}: the {other}"


def _goals(summary: dict[str, Any], learners: int) -> str:
    """Describe when the environment was solved and the solve return was held."""
    text = f"solved in {summary['seconds_to_solve']:.2f} s" if summary["solved"] else "not solved"
    if learners:
        text += f" ({summary['learners_solved']} of {learners} learners)"
    if summary["held"]:
        text += (
            f", held after {summary['seconds_to_hold']:.2f} s ({summary['rows_to_hold']:,} rows)"
        )
    elif learners and summary["learners_held"]:
        text += f", held by {summary['learners_held']}"
    elif summary["solved"] and summary["ended_by"] != "solved":
        text += ", not held"
    if summary["learning_stability"] is not None:
        share = f"{summary['learning_stability']:.0%} of the second half of the evaluations"
        text += f", {share} at {summary['solve_return']:g} or more"
    return text


def _undone(summary: dict[str, Any]) -> str:
    """Return the number of undone gradient steps as text; empty if there are none."""
    skipped = summary["skipped_gradient_steps"]
    return f" ({skipped:,} of them not finite and undone)" if skipped else ""
