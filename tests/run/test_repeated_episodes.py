"""A run with few distinct evaluation episodes reports it once, with an epsilon-greedy return."""

from jaxdqn.run.runner import run
from tests.run.test_run import collector
from tests.toys import cycle, quick_runs, tiny

ENVIRONMENT = cycle([1.0, 2.0, 3.0], limit=3)
"""Deterministic, with one start: 6 at best, and one less for every action 1."""


def trained(out=None, **fields):
    seen, logger = collector()
    with quick_runs():
        config = tiny(total_rows=132, eval_episodes=30, eval_every=0, **fields)
        result = run(config, environment=ENVIRONMENT, out=out, loggers=[logger])
    events = [record for kind, record in seen.records if kind == "event"]
    return result.summary, [one for one in events if one["event"] == "repeated_episodes"]


def test_a_deterministic_environment_is_scored_with_random_actions_too():
    summary, (event,) = trained()
    assert summary["eval_distinct_episodes"] == summary["best_fresh_distinct_episodes"] == 1
    assert summary["best_fresh_return_mean"] == round(summary["best_fresh_return_mean"])
    assert abs(summary["best_return_mean_at_epsilon"] - summary["best_fresh_return_mean"]) < 0.5
    message = event["message"]
    assert "\n" not in message
    assert "1 of 30 evaluation episodes are distinct" in message
    assert f"is {summary['best_return_mean_at_epsilon']:.2f}" in message


def test_evaluations_with_random_actions_have_enough_distinct_episodes():
    summary, events = trained(eval_epsilon=0.9)
    assert 3 < summary["eval_distinct_episodes"] <= 8  # 2 ** 3 sequences of actions
    assert summary["best_return_mean_at_epsilon"] is None
    assert events == []
