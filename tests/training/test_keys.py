"""Keys of one iteration: one split, read by name."""

import jax
import jax.numpy as jnp
import pytest

from jaxdqn.training.keys import IterationKeys, split_named, typed_key
from jaxdqn.training.trainer import make_trainer, train
from tests.toys import assert_identical, cycle, quick_jit, tiny


def test_named_keys_are_those_of_one_split_in_the_order_of_the_fields():
    key = jax.random.key(7)
    shapes = IterationKeys(next=(), act=(2, 3), learn=IterationKeys((4,), (), (1, 2)))
    named = split_named(key, shapes)
    assert jax.tree.map(jnp.shape, named) == shapes
    flat = [leaf.ravel() for leaf in jax.tree.leaves(named)]
    assert_identical(jnp.concatenate(flat), jax.random.split(key, 1 + 6 + 4 + 1 + 2))


def test_a_raw_key_is_the_typed_key_of_the_same_seed():
    config, parts = tiny(total_rows=40, log_every=4), {"environment": cycle((1.0, 2.0), limit=3)}
    trainer = make_trainer(config, **parts)
    init = quick_jit(trainer.init)
    typed, raw = jax.random.key(7), jax.random.PRNGKey(7)
    assert_identical(init(typed), init(raw))
    run = train(config, **parts)
    assert jax.eval_shape(run, typed) == jax.eval_shape(run, raw)


@pytest.mark.parametrize("key", [7, None, jnp.zeros((3, 2), jnp.uint32), jnp.zeros(2)])
def test_other_values_are_rejected_as_keys(key):
    with pytest.raises(ValueError, match=r"(?s)^key=.*must be a key of jax.random.key"):
        typed_key(key)
