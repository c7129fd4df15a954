"""Writes at one index as selections: the same values, and no scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn import envs
from jaxdqn.envs.one_hot import select_at_indices
from tests.trees import assert_identical


def scatters(function, *arguments):
    """Count the scatters of a function, also those in functions that it calls."""

    def count(jaxpr):
        inner = [value.jaxpr for equation in jaxpr.eqns for value in equation.params.values()
                 if hasattr(value, "jaxpr")]  # fmt: skip
        here = sum(equation.primitive.name == "scatter" for equation in jaxpr.eqns)
        return here + sum(map(count, inner))

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.mark.parametrize(
    "write",
    [
        lambda x, i: x.at[i, 2].set(9.0),
        lambda x, i: x.at[i].set(jnp.float32([7, 8, 9])),
        lambda x, i: x.at[:, i].set(5.0),
        lambda x, i: x.at[i, i].set(4.0, mode="clip"),
        lambda x, i: jax.jit(lambda x: x.at[i, 0].set(3.0))(x),
    ],
)
@pytest.mark.parametrize("index", [0, 1, -1, 3, 17])
def test_a_write_at_one_index_equals_the_scatter_also_out_of_bounds(write, index):
    x = jnp.arange(12, dtype=jnp.float32).reshape(4, 3)
    selected = select_at_indices(write)
    np.testing.assert_array_equal(selected(x, jnp.int32(index)), write(x, jnp.int32(index)))
    assert scatters(write, x, jnp.int32(0)) == 1
    assert scatters(selected, x, jnp.int32(0)) == 0


def test_other_writes_keep_their_scatter():
    for write, size in (
        (lambda x, i: x.at[i].set(1.0), 5_000),  # too large
        (lambda x, i: x.at[jnp.stack([i, i + 2])].set(1.0), 8),  # several indices
    ):
        x = jnp.zeros(size, jnp.float32)
        selected = select_at_indices(write)
        assert scatters(selected, x, jnp.int32(0)) == 1
        np.testing.assert_array_equal(selected(x, jnp.int32(3)), write(x, jnp.int32(3)))


@pytest.mark.parametrize(
    "name", ["Breakout-MinAtar", pytest.param("Asterix-MinAtar", marks=pytest.mark.slow),
             pytest.param("SpaceInvaders-MinAtar", marks=pytest.mark.slow)]
)  # fmt: skip
def test_a_game_played_with_selections_is_bitwise_identical(name):
    environment = envs.make(name)
    selected = select_at_indices(environment.step)
    key = jax.random.key(0)
    state, _ = environment.reset(key)
    assert scatters(environment.step, key, state, jnp.int32(0)) >= 5
    assert scatters(selected, key, state, jnp.int32(0)) <= 2

    def play(step):
        def one(state, key):
            action = jax.random.randint(key, (), 0, environment.spec.num_actions, jnp.int32)
            state, timestep = step(key, state, action)
            return state, timestep

        return jax.jit(lambda state: jax.lax.scan(one, state, jax.random.split(key, 50)))(state)

    assert_identical(play(selected), play(environment.step))
