"""Counters do not overflow, by themselves and in a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Counters, counter_add, counter_float, counter_int, make_counter
from tests.toys import cycle, quick_jit, tiny

ADD = jax.jit(counter_add)
BIG = [0, 2**30 - 1, 2**30, 2**31 - 5, 2**31, 2**32 - 1, 2**40, 2**53 + 1, 2**60]


@pytest.mark.parametrize("start", BIG)
@pytest.mark.parametrize("increment", [0, 1, 32, 2**30 - 1])
def test_adding_to_a_counter_adds_integers_exactly(start, increment):
    assert counter_int(ADD(make_counter(start), jnp.int32(increment))) == start + increment


@given(st.integers(0, 2**60), st.lists(st.integers(0, 2**30 - 1), max_size=4))
def test_a_counter_holds_any_sum_exactly(start, increments):
    counter = make_counter(start)
    for increment in increments:
        counter = ADD(counter, jnp.int32(increment))
    assert counter_int(counter) == start + sum(increments)


def test_a_counter_adds_up_in_a_scan_past_2_to_the_40():
    big = 2**30 - 3
    counter, _ = jax.lax.scan(
        lambda counter, _: (counter_add(counter, jnp.int32(big)), None),
        make_counter(2**31 - 1),
        None,
        length=1500,
    )
    assert counter_int(counter) == 2**31 - 1 + 1500 * big > 2**40


@pytest.mark.parametrize("value", [*BIG, 12_345_678_901, 3 * 2**40 + 7])
def test_a_counter_as_float_is_accurate_to_float32(value):
    as_float = counter_float(make_counter(value))
    assert as_float.dtype == jnp.float32
    np.testing.assert_allclose(float(as_float), value, rtol=2.0**-23)


@pytest.fixture(scope="module")
def run():
    """Return a run's first state and jitted step; epsilon falls from 1 to 0 over 2**31 - 1 rows."""
    config = tiny(epsilon_decay_rows=2**31 - 1, epsilon_end=0.0, gradient_steps=3)
    trainer = make_trainer(config, environment=cycle((1.0, 2.0), limit=3))
    return quick_jit(trainer.init)(jax.random.key(0)), quick_jit(trainer.step)


@pytest.mark.parametrize(
    ("rows", "epsilon"), [(2**30 - 6, 0.5), (2**31 - 6, 0.0), (2**40 - 6, 0.0)]
)
def test_a_run_counts_and_schedules_past_2_to_the_31(run, rows, epsilon):
    state, step = run
    env_steps, gradient_steps = rows * 3 // 4, rows - 1
    counters = Counters(*map(make_counter, (rows, env_steps, gradient_steps)))
    state = state._replace(counters=counters)
    for _ in range(3):
        state, metrics = step(state)
        env_steps += int(metrics.env_steps)
        np.testing.assert_allclose(float(metrics.epsilon), epsilon, atol=1e-6)
    assert counter_int(state.counters.rows) == rows + 3 * 4
    assert counter_int(state.counters.env_steps) == env_steps
    assert counter_int(state.counters.gradient_steps) == gradient_steps + 3 * 3
