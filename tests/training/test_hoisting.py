"""Functions of random keys, split into random draws and the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.training.hoisting import split_first

KEYS = jax.random.split(jax.random.key(3), 5)
SCALE = jnp.arange(5, dtype=jnp.float32)
FIRST = (jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.float32))
OTHER = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}
MUCH = 2**20


def explore(first, other):
    """Use random numbers, a constant, both arguments, and a nested jit with both of them."""
    key, scale = first
    key_noise, key_coin, key_nested = jax.random.split(key, 3)
    noise = scale * jax.random.normal(key_noise, (3,))
    ramp = jnp.arange(3, dtype=jnp.float32) + 1.0
    nested = jax.jit(lambda key, x: x + jax.random.uniform(key, x.shape))
    chosen = jnp.where(jax.random.bernoulli(key_coin, 0.5, (3,)), noise * ramp, other["x"] * ramp)
    return {"chosen": chosen, "scale": scale, "nested": nested(key_nested, other["x"])}


def by_hand(function, x):
    return [function((key, scale), {"x": x}) for key, scale in zip(KEYS, SCALE, strict=True)]


def joined(split, x):
    drawn = jax.vmap(lambda key, scale: split.before((key, scale)))(KEYS, SCALE)
    calls = [[leaf[index] for leaf in drawn] for index in range(len(KEYS))]
    return [jax.jit(split.after)(one, {"x": x}) for one in calls]


@pytest.mark.parametrize("most_bytes", [MUCH, 0])
def test_the_parts_compute_what_the_function_computes(most_bytes):
    split = split_first(explore, FIRST, OTHER, most_bytes=most_bytes)
    x = jnp.asarray([0.5, -1.0, 2.0])
    for one, other in zip(joined(split, x), by_hand(jax.jit(explore), x), strict=True):
        # The programs are compiled separately, so normal numbers may be rounded differently.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)
    assert len({float(one["chosen"][0]) for one in joined(split, x)}) > 2


def primitives(function, *arguments):
    return {eqn.primitive.name for eqn in jax.make_jaxpr(function)(*arguments).jaxpr.eqns}


def test_random_numbers_are_made_in_the_first_part():
    def function(first, other):
        key, scale = first
        return other["x"] + scale * jax.random.normal(key, (3,))

    split = split_first(function, FIRST, OTHER, most_bytes=MUCH)
    drawn = jax.eval_shape(split.before, FIRST)
    assert [leaf.shape for leaf in drawn] == [(3,)]
    assert primitives(split.after, drawn, OTHER) == {"add"}


def test_draws_that_are_too_large_are_made_in_the_second_part():
    split = split_first(explore, FIRST, OTHER, most_bytes=20)
    drawn = jax.eval_shape(split.before, FIRST)
    assert [leaf.shape for leaf in drawn] == [(), ()]
    assert drawn[0].dtype == FIRST[0].dtype


def test_what_does_not_depend_on_the_first_argument_is_not_passed_on():
    split = split_first(
        lambda first, other: other["x"] + jnp.arange(3.0), FIRST, OTHER, most_bytes=MUCH
    )
    assert split.before((KEYS[0], SCALE[0])) == []
    np.testing.assert_array_equal(split.after([], {"x": jnp.ones(3)}), [1.0, 2.0, 3.0])


def test_operations_with_side_effects_happen_once_and_in_the_second_part():
    seen = []

    def function(first, other):
        jax.debug.callback(lambda scale: seen.append(float(scale)), first[1])
        return first[1] + other["x"]

    split = split_first(function, FIRST, OTHER, most_bytes=MUCH)
    drawn = split.before((KEYS[0], jnp.float32(2.0)))
    jax.effects_barrier()
    assert seen == []
    split.after(drawn, {"x": jnp.zeros(3)})
    jax.effects_barrier()
    assert seen == [2.0]
