"""Runs that hold the solve return: ten consecutive evaluations, 5,000 rows apart."""

import json

import pytest

from jaxdqn.cli.explain import explain
from jaxdqn.cli.outcome import outcome
from jaxdqn.run.holding import (
    HELD_EVALUATIONS,
    HELD_SPACING_ROWS,
    countable_evaluations,
    record_evaluation,
    stability,
    unholdable,
)
from jaxdqn.run.interrupt import StopRequest
from jaxdqn.run.progress import Progress
from tests.run.test_loop import Script, train_all
from tests.run.test_run import collector
from tests.toys import tiny

APART = 1250 * 4  # rows of a chunk


def scripted(chunks, **overrides):
    """Return a configuration that evaluates every 5,000 rows."""
    config = tiny(
        **{"total_rows": 32 + APART * chunks, "log_every": APART, "eval_every": 1,
           "solve_return": 10.0, **overrides}
    )  # fmt: skip
    assert (config.num_chunks, config.chunks_per_evaluation) == (chunks, 1)
    return config


def ended(config, returns):
    """Run a script; return the host loop, the number of chunks that it ran, and the summary."""
    host = Script(config, returns, returns).host()
    chunks = int(train_all(host).agent.params)
    identity = {"interrupted": False, "ended_by": host.ended_by(StopRequest())}
    identity["compile_seconds"] = 0.0
    return host, chunks, {**host.summary(), **identity}


@pytest.mark.parametrize("chunks", [1, 2, 9, 10, 11, 40])
@pytest.mark.parametrize("every", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [APART, APART // 4, 3 * APART])
def test_the_evaluations_that_can_count_are_those_that_a_perfect_run_counts(chunks, every, rows):
    config = tiny(
        total_rows=32 + rows * chunks, log_every=rows, eval_every=every * rows, solve_return=10.0
    )
    assert config.num_chunks == chunks
    progress = Progress.of(1)
    for chunk in range(1, chunks + 1):
        progress.totals["rows"] = 32 + chunk * rows
        if chunk % config.chunks_per_evaluation == 0 or chunk == chunks:
            record_evaluation(progress, [10.0], 10.0, 1.0)
    assert countable_evaluations(config) == progress.series[0]


def test_a_run_that_cannot_hold_within_its_budget_warns_at_its_start():
    for fields, count in (({"eval_every": 0}, 1), ({"total_rows": 32 + 9 * APART}, 9)):
        config = tiny(
            **{"total_rows": 32 + 20 * APART, "log_every": APART, "eval_every": 1,
               "solve_return": 10.0, "stop_when": "held", **fields}
        )  # fmt: skip
        assert f"the budget has {count}:" in unholdable(config)
        seen, logger = collector()
        train_all(Script(config, [10.0] * 20, [10.0] * 20).host([logger]))
        (event,) = [record for kind, record in seen.records if kind == "event"]
        assert event["message"].startswith("warning: stop_when='held' needs 10 evaluations")
        assert "does not end before its budget" in explain(config, "own", {})
    assert unholdable(scripted(20, stop_when="held")) is None
    assert unholdable(scripted(2, stop_when="solved")) is None


def test_ten_evaluations_in_a_row_hold_the_solve_return_and_end_the_run():
    config = scripted(20, stop_when="held")
    _, chunks, summary = ended(config, [10.0] * 20)
    assert (chunks, summary["held"], summary["ended_by"]) == (10, True, "held")
    assert summary["rows_to_hold"] == 10 * APART
    assert summary["seconds_to_solve"] < summary["seconds_to_hold"]
    assert summary["learning_stability"] == 1.0
    assert ", held after" in outcome(summary).splitlines()[0]


def test_one_evaluation_below_the_solve_return_starts_the_series_again():
    config = scripted(20, stop_when="held")
    returns = [10.0] * 9 + [9.9] + [10.0] * 10
    _, chunks, summary = ended(config, returns)
    assert (chunks, summary["held"], summary["ended_by"]) == (20, True, "budget")
    assert summary["rows_to_hold"] == 20 * APART
    config = scripted(19, stop_when="held")
    _, chunks, summary = ended(config, returns)
    assert (chunks, summary["solved"], summary["held"]) == (19, True, False)
    assert (summary["seconds_to_hold"], summary["rows_to_hold"]) == (None, None)
    assert "solved in" in outcome(summary)
    assert ", not held, " in outcome(summary)


def test_evaluations_less_than_5000_rows_apart_count_once():
    progress = Progress.of(1)
    for count in range(1, 31):
        progress.totals = {"rows": count * HELD_SPACING_ROWS // 2}
        record_evaluation(progress, [10.0], 10.0, float(count))
    # The first evaluation counts, then every other one.
    assert (progress.held_at, progress.held_rows) == ([19.0], [19 * HELD_SPACING_ROWS // 2])
    progress.totals = {"rows": progress.totals["rows"] + 1}
    record_evaluation(progress, [9.0], 10.0, 31.0)  # too early to count, but it ends the series
    assert (progress.series, progress.held_at) == ([0], [19.0])


def test_each_learner_of_a_population_holds_by_itself():
    progress = Progress.of(3)
    for count in range(1, 12):
        progress.totals = {"rows": 3 * count * HELD_SPACING_ROWS}
        record_evaluation(progress, [10.0, 10.0 if count > 1 else 0.0, 0.0], 10.0, float(count))
    assert progress.held_at == [10.0, 11.0, None]
    assert progress.held_rows == [10 * HELD_SPACING_ROWS, 11 * HELD_SPACING_ROWS, None]
    assert not progress.all_live_learners_held
    progress.diverged_at[2] = 4
    assert progress.all_live_learners_held
    assert [stability(passed) for passed in progress.passed] == [1.0, 1.0, 0.0]


def test_the_series_continues_over_a_resume():
    whole, parts = Progress.of(1), Progress.of(1)
    for count in range(1, HELD_EVALUATIONS + 1):
        for progress in (whole, parts):
            progress.totals = {"rows": count * HELD_SPACING_ROWS}
            record_evaluation(progress, [10.0], 10.0, float(count))
        stored = json.loads(json.dumps(vars(parts)))
        parts = Progress.of(1)
        parts.restore(stored)
    assert vars(parts) == vars(whole)
    assert whole.held_at == [10.0]


def test_a_checkpoint_of_an_earlier_version_starts_the_series():
    added = ("held_at", "held_rows", "series", "series_rows", "passed")
    stored = {name: value for name, value in vars(Progress.of(2)).items() if name not in added}
    progress = Progress.of(2)
    progress.restore(stored)
    progress.totals = {"rows": 10}
    record_evaluation(progress, [1.0, 0.0], 1.0, 1.0)
    assert (progress.series, progress.passed) == ([1, 0], [[True], [False]])


@pytest.mark.parametrize(
    ("returns", "share"),
    [([9, 9, 10, 10], 1.0), ([10, 10, 9, 10], 0.5), ([10, 10, 10, 9, 10], 2 / 3), ([9], 0.0)],
)
def test_stability_is_the_share_of_the_second_half_at_the_solve_return(returns, share):
    _, _, summary = ended(scripted(len(returns)), returns)
    assert summary["learning_stability"] == pytest.approx(share)
    _, _, summary = ended(scripted(len(returns), solve_return=None), returns)
    assert (summary["learning_stability"], summary["held"]) == (None, False)


def test_a_solve_return_that_fresh_episodes_refute_does_not_count():
    config = scripted(10)
    host = Script(config, [10.0] * 10, [9.0] + [10.0] * 9).host()
    train_all(host)
    summary = host.summary()
    assert (summary["solved"], summary["held"]) == (True, False)
    host = Script(config, [10.0] * 10, [9.0] * 10).host()
    train_all(host)
    summary = host.summary()
    assert (summary["solved"], summary["held"], summary["learning_stability"]) == (False, False, 0)


def test_a_diverged_learner_does_not_hold():
    progress = Progress.of(2)
    progress.diverged_at[1] = 1
    for count in range(1, 11):
        progress.totals = {"rows": 2 * count * HELD_SPACING_ROWS}
        record_evaluation(progress, [10.0, 10.0], 10.0, float(count))
    assert progress.held_at == [10.0, None]


def test_the_output_line_has_the_share_of_late_evaluations():
    _, _, summary = ended(scripted(4), [10.0, 10.0, 9.0, 10.0])
    assert "not held, 50% of the second half of the evaluations at 10 or more: " in outcome(summary)
    _, _, summary = ended(scripted(4, solve_return=None), [10.0] * 4)
    assert outcome(summary).startswith("done: ")
