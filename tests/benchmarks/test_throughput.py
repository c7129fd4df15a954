"""Throughput: the timed programs, and the figures derived from their times."""

import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import configs, report, throughput, workloads
from benchmarks.timing import Effort, Interval
from tests.toys import quick_jit


def test_each_call_continues_from_the_state_of_the_previous_one():
    run = workloads.carried(lambda state: (state + 1, state), 5)
    assert [run(), run(), run()] == [(6, 5), (7, 6), (8, 7)]


REPETITIONS = 10
SETTING = throughput.Setting("CartPole-v1", 4, 1, 2, 8)
MEASURED = {
    **SETTING._asdict(),
    "env_steps_per_second": 4e3,
    "gradient_steps_per_second": 2e3,
    "compile_seconds": 1.0,
    "us_per_iteration": Interval(1e3, 9e2, 2e3),
    "us_of_parts_alone": {name: Interval(1e2, 9e1, 2e2) for name in throughput.PARTS},
    "us_of_parts_summed": 6e2,
}


@pytest.fixture(scope="module")
def tiny_parts():
    """Compile the parts of one tiny setting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick_jit)
        return workloads.prepare_parts(configs.sized(**SETTING._asdict()), REPETITIONS)


@pytest.mark.slow
def test_throughput_is_positive_and_agrees_with_the_time_of_an_iteration(tmp_path):
    measured = throughput.measure_setting(SETTING, Effort(2, 0.0, REPETITIONS))
    assert set(measured) == set(MEASURED)
    seconds = measured["us_per_iteration"].median * 1e-6
    assert measured["gradient_steps_per_second"] * seconds == pytest.approx(2)
    # Reset rows are not environment steps: there are fewer than E per iteration.
    assert 2 < measured["env_steps_per_second"] * seconds <= SETTING.num_envs
    assert measured["compile_seconds"] > 0
    assert set(measured["us_of_parts_alone"]) == set(throughput.PARTS)
    for part in measured["us_of_parts_alone"].values():
        assert 0 < part.low <= part.median <= part.high < math.inf
    report.write_json(tmp_path / "throughput.json", measured)


def test_throughput_table_has_a_column_for_each_figure():
    header, line = throughput.settings_table([MEASURED]).splitlines()
    assert line.split()[:5] == ["CartPole-v1", "4", "1", "2", "8"]
    assert [part in header.split() for part in throughput.PARTS] == [True] * 6


@pytest.mark.slow
def test_parts_do_their_work_in_every_repetition(tiny_parts):
    def run(name):
        return jax.tree.map(jnp.copy, tiny_parts[name][0].case.run()[0])

    (before, _), (after, _) = run("learn"), run("learn")
    assert int(after.since_target) - int(before.since_target) == REPETITIONS
    kernels = [jax.tree.leaves(agent_state.params) for agent_state in (before, after)]
    assert any(bool(jnp.any(old != new)) for old, new in zip(*kernels, strict=True))
    before, after = run("add"), run("add")
    assert int(after.position) - int(before.position) == REPETITIONS
    (_, before, _), (_, after, _) = run("environment"), run("environment")
    assert bool(jnp.any(before.obs != after.obs))


@pytest.mark.slow
def test_each_part_has_its_repetitions_per_iteration(tiny_parts):
    counts = {name: count for name, (_, count) in tiny_parts.items()}
    twice = {"sample": 2, "learn": 2}  # M = 2, K = 1
    assert counts == {name: twice.get(name, 1) for name in throughput.PARTS}


def test_a_configuration_has_the_requested_sizes():
    config = configs.sized(
        "Breakout-MinAtar", num_envs=1024, rollout_length=8, gradient_steps=3, batch_size=64
    )
    assert (config.num_envs, config.rollout_length) == (1024, 8)
    assert (config.gradient_steps, config.batch_size) == (3, 64)
    assert config.replay_capacity % (1024 * 8) == 0
