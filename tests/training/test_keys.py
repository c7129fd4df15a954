"""Keys of one iteration: one split, read by name."""

import jax
import jax.numpy as jnp

from jaxdqn.training.keys import IterationKeys, split_named
from tests.toys import assert_identical


def test_named_keys_are_those_of_one_split_in_the_order_of_the_fields():
    key = jax.random.key(7)
    shapes = IterationKeys(next=(), act=(2, 3), learn=IterationKeys((4,), (), (1, 2)))
    named = split_named(key, shapes)
    assert jax.tree.map(jnp.shape, named) == shapes
    flat = [leaf.ravel() for leaf in jax.tree.leaves(named)]
    assert_identical(jnp.concatenate(flat), jax.random.split(key, 1 + 6 + 4 + 1 + 2))
