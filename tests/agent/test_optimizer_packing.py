"""Packing of small leaves, flushing of tiny moments, and the global norm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.agent.optimizer import flush_tiny, make_optimizer, pack_small
from jaxdqn.config.config import replace
from jaxdqn.tree import global_norm
from tests.optimizers import BASE, TWINS, assert_same, hyper_of, random_gradients, tree_map
from tests.toys import quick_jit

SMALLEST_NORMAL = np.finfo(np.float32).tiny


@pytest.mark.parametrize("limit", [0, 1, 5, 12])
def test_packing_changes_no_update(limit):
    gradients = random_gradients()
    params = random_gradients(1, seed=9)[0]
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    packed = pack_small(plain, limit)
    with jax.numpy_dtype_promotion("standard"):
        state, packed_state = quick_jit(plain.init)(params), quick_jit(packed.init)(params)
        update, packed_update = quick_jit(plain.update), quick_jit(packed.update)
        for gradient in gradients:
            expected, state = update(gradient, state, params)
            ours, packed_state = packed_update(gradient, packed_state, params)
            assert_same([ours], [expected])
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(packed_state) if leaf.dtype != jnp.int32)
    moments = {0: [1, 5, 12], 1: [1, 5, 12], 5: [6, 12], 12: [18]}[limit]
    assert sizes == sorted(2 * moments)


def test_packing_leaves_tensors_of_another_type_unpacked():
    gradient = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.bfloat16)}
    packed = pack_small(optax.scale(2.0))
    updates, _ = packed.update(gradient, packed.init(gradient))
    assert updates["b"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["a"], [2, 2, 2])


@pytest.mark.parametrize("name", sorted(TWINS))
def test_moments_of_weights_without_gradient_reach_zero_without_becoming_subnormal(name):
    optimizer = make_optimizer(replace(BASE, optimizer=name))(hyper_of())
    gradient = {"w": np.float32([1.0, 1e-16, 5e-18, 1e-30, 0.0])}
    state = optimizer.init(gradient)

    def step(state, gradient):
        _, state = optimizer.update(gradient, state)
        floats = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32]
        return state, jnp.stack(floats)

    with_gradient = tree_map(lambda leaf: np.tile(leaf, (50, 1)), gradient)
    without_gradient = tree_map(lambda leaf: np.zeros((1_000, 5), np.float32), gradient)
    state, early = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(state, with_gradient)
    # Second moments need tens of thousands of steps to decay; start near the end of that.
    state = tree_map(lambda leaf: leaf * 1e-35 if leaf.dtype == jnp.float32 else leaf, state)
    state, late = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(state, without_gradient)
    sizes = np.abs(np.concatenate([np.ravel(early), np.ravel(late)]))
    # The processor may flush subnormal numbers itself, so test a factor of 8 above them.
    assert np.all((sizes == 0) | (sizes > 8 * SMALLEST_NORMAL))
    assert np.all(early[-1][..., 0] > 0)


def test_flushing_changes_updates_by_rounding_errors_only():
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-30, 2, (200, 64))
    gradients = (sizes * rng.choice([-1, 1], sizes.shape)).astype(np.float32)
    plain = optax.scale_by_adam()
    flushed = flush_tiny(plain)
    with jax.numpy_dtype_promotion("standard"):
        for transform in (plain, flushed):
            assert transform.init(gradients[0]).count == 0
        _, expected = jax.lax.scan(
            lambda s, g: plain.update(g, s)[::-1], plain.init(gradients[0]), gradients
        )
        _, ours = jax.lax.scan(
            lambda s, g: flushed.update(g, s)[::-1], flushed.init(gradients[0]), gradients
        )
    # Updates are of order 1, so the tolerance is a few roundings of float32.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=3e-7)


def test_global_norm_is_over_small_and_large_leaves():
    tree = {"a": jnp.array([3.0]), "b": [jnp.full((200, 100), 0.01), jnp.array([[4.0]])]}
    np.testing.assert_allclose(global_norm(tree), np.sqrt(9 + 16 + 200 * 100 * 1e-4), rtol=1e-6)
    np.testing.assert_allclose(global_norm(tree), optax.tree.norm(tree), rtol=1e-6)
    assert global_norm({}) == 0.0
