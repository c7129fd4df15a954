"""Training longer: N + N rows equal 2N, chunks keep their length, schedules follow ``extend``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.config.config import replace
from jaxdqn.config.presets import PRESETS
from jaxdqn.run.runner import run
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.resume import check_same_run, resumed_config
from jaxdqn.training.hyper import hyper_from
from tests.parallel.test_mapping_laws import assert_identical
from tests.run.test_run import (
    compiled_once,  # noqa: F401 (a fixture)
)
from tests.storage.runs import interrupted, records
from tests.toys import noisy, tiny

ITERATION = 4  # rows
N = tiny(total_rows=32 + 60 * ITERATION, log_every=50 * ITERATION, eval_every=0, eval_episodes=4)
DOUBLE = replace(N, total_rows=32 + 120 * ITERATION)
FALLING = {"learning_rate_schedule": "linear"}
RISING = {"replay": "prioritized"}


@pytest.mark.slow
def test_a_longer_run_keeps_its_chunks_and_equals_one_that_had_its_budget_from_the_start(tmp_path):
    assert (N.iterations_per_chunk, DOUBLE.iterations_per_chunk) == (30, 40)
    whole = run(DOUBLE, environment=noisy())
    run(N, out=tmp_path / "run", environment=noisy())
    longer = run(DOUBLE, out=tmp_path / "run", environment=noisy(), resume=True)
    assert_identical(whole.state, longer.state)
    assert longer.summary["rows"] == whole.summary["rows"] == DOUBLE.total_rows
    assert [record["chunk"] for record in records(tmp_path / "run", "metrics.jsonl")] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    assert read_config(tmp_path / "run").chunk_iterations == 30
    # The same budget again, without the length of the chunks: nothing is trained.
    again = run(DOUBLE, out=tmp_path / "run", environment=noisy(), resume=True)
    assert_identical(longer.state, again.state)


@pytest.mark.slow
@pytest.mark.parametrize("schedules", [FALLING, RISING])
@pytest.mark.parametrize("extend", ["keep", "stretch"])
def test_schedules_over_the_budget_follow_the_rule(tmp_path, schedules, extend):
    short, long = replace(N, **schedules), replace(DOUBLE, **schedules)
    run(short, out=tmp_path / "run", environment=noisy())
    longer = run(long, out=tmp_path / "run", environment=noisy(), resume=True, extend=extend)
    kept = run(
        replace(long, schedule_rows=short.total_rows, chunk_iterations=30), environment=noisy()
    )
    leaves = [jax.tree.leaves(state.agent.params) for state in (longer.state, kept.state)]
    equal = all(np.array_equal(first, second) for first, second in zip(*leaves, strict=True))
    assert equal is (extend == "keep")
    stored = read_config(tmp_path / "run")
    assert stored.rows_of_schedules == (short if extend == "keep" else long).total_rows
    events = [each for each in records(tmp_path / "run", "events.jsonl")
              if each["event"] == "resumed"]  # fmt: skip
    assert f"(extend={extend})" in events[-1]["message"]


def test_a_run_extended_and_then_interrupted_keeps_its_schedules():
    short, long = replace(N, **RISING), replace(DOUBLE, **RISING)
    extended = resumed_config(short, long, "keep", None)
    assert extended.schedule_rows == short.total_rows
    # The caller passes the configuration without the fields that the run has recorded.
    for extend in ("keep", "stretch"):
        assert resumed_config(extended, long, extend, None) == extended


def learning_rate(config, gradient_steps):
    """Return the size of an update after ``gradient_steps``, divided by that of the first."""
    optimizer = make_optimizer(replace(config, optimizer="rmsprop"))(hyper_from(config))
    gradient = {"w": jnp.ones(3)}
    state = optimizer.init(gradient)
    counts = jax.tree.map(
        lambda leaf: leaf + gradient_steps if leaf.dtype == jnp.int32 else leaf, state
    )
    sizes = [float(jnp.max(jnp.abs(optimizer.update(gradient, each, gradient)[0]["w"])))
             for each in (state, counts)]  # fmt: skip
    return sizes[1] / sizes[0]


def test_the_learning_rate_ends_with_the_schedule_or_with_the_new_budget():
    short, long = replace(N, **FALLING), replace(DOUBLE, **FALLING)
    steps = short.total_gradient_steps
    kept = resumed_config(short, long, "keep", None)
    stretched = resumed_config(short, long, "stretch", None)
    assert learning_rate(short, steps // 2) == pytest.approx(0.5)
    assert learning_rate(kept, steps // 2) == pytest.approx(0.5)
    assert learning_rate(kept, steps) == learning_rate(kept, 2 * steps) == 0
    assert learning_rate(stretched, steps) == pytest.approx(0.5)
    assert learning_rate(stretched, 2 * steps) == 0


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("extend", ["keep", "stretch"])
def test_every_preset_can_be_trained_longer(name, extend):
    before = PRESETS[name]
    for factor in (1.5, 2, 10):
        longer = replace(before, total_rows=round(before.total_rows * factor))
        after = resumed_config(before, longer, extend, None)
        check_same_run(before, after, None)
        assert after.iterations_per_chunk == before.iterations_per_chunk
        assert after.num_chunks > before.num_chunks
        rows = before.total_rows if extend == "keep" else longer.total_rows
        assert not before.has_budget_schedule or after.rows_of_schedules == rows


@pytest.mark.slow
def test_options_of_evaluation_may_change_on_resume(tmp_path):
    uninterrupted = run(replace(N, eval_every=100), environment=noisy())
    interrupted(tmp_path / "run", replace(N, checkpoint_every=100), chunk=1)
    other = replace(N, checkpoint_every=100, eval_every=50, eval_episodes=2, eval_epsilon=0.5)
    resumed = run(other, out=tmp_path / "run", environment=noisy(), resume=True)
    assert_identical(uninterrupted.state, resumed.state)


@pytest.mark.parametrize(
    ("changes", "extend", "message"),
    [
        ({"log_every": 80}, None, r"log_every=80: must be 200, as in the run"),
        ({"chunk_iterations": 7}, None, r"chunk_iterations=7: must be 30, as in the run"),
        ({}, "half", "extend='half': must be one of keep, stretch"),
        ({**RISING}, None, "replay='prioritized': must be 'uniform', as in the run"),
    ],
)
def test_other_changes_of_the_chunks_are_rejected(tmp_path, changes, extend, message):
    run(N, out=tmp_path / "run", environment=noisy())
    with pytest.raises(ValueError, match=message):
        run(
            replace(DOUBLE, **changes),
            out=tmp_path / "run",
            environment=noisy(),
            resume=True,
            extend=extend,
        )


def test_other_schedules_and_extend_without_resume_are_rejected():
    before = replace(N, **FALLING)
    for rows, extend, total in ((900, "stretch", 800), (900, "keep", 800), (900, "keep", 272)):
        after = replace(before, total_rows=total, schedule_rows=rows)
        with pytest.raises(ValueError, match="schedule_rows=900: must be left out on resume"):
            resumed_config(before, after, extend, None)
    with pytest.raises(ValueError, match="extend='keep': must come with resume=True"):
        run(N, extend="keep")
    with pytest.raises(ValueError, match=r"schedule_rows=900: must be None unless replay="):
        replace(N, schedule_rows=900)
    with pytest.raises(ValueError, match="schedule_rows=32: must be above the 32 rows"):
        replace(before, schedule_rows=32)
