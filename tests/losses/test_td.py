"""TD errors and losses: NumPy, closed forms, limit cases, optax and rlax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.losses import huber_loss, squared_loss, td_error, weighted_mean

rlax = pytest.importorskip("rlax")

TD = np.concatenate([np.linspace(-3, 3, 25), [-1.0, 0.0, 1.0, 1e-3, -250.0]]).astype(np.float32)


def _huber(td, delta):
    each = jax.vmap(huber_loss, in_axes=(0, None))
    return each(jnp.asarray(td), jnp.float32(delta))


def test_td_error_is_target_minus_the_value_of_the_action():
    td = td_error(jnp.array([5.0, 7.0, 11.0]), jnp.int32(2), jnp.float32(4.0))
    assert td == -7.0


def test_td_error_has_a_gradient_only_for_the_value_of_the_action():
    gradient = jax.grad(td_error)(jnp.array([5.0, 7.0, 11.0]), jnp.int32(1), jnp.float32(4.0))
    np.testing.assert_array_equal(gradient, [0.0, -1.0, 0.0])


def test_squared_loss_is_half_the_square():
    np.testing.assert_allclose(jax.vmap(squared_loss)(TD), 0.5 * TD**2, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(squared_loss))(TD), TD, rtol=1e-6)


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
def test_huber_loss_agrees_with_numpy_optax_and_rlax(delta):
    size = np.abs(TD)
    by_hand = np.where(size <= delta, 0.5 * TD**2, delta * (size - 0.5 * delta))
    ours = _huber(TD, delta)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-6)
    np.testing.assert_allclose(ours, optax.huber_loss(jnp.asarray(TD), delta=delta), rtol=1e-6)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(ours, rlax.huber_loss(jnp.asarray(TD), delta), rtol=1e-6)


@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_huber_gradient_is_the_clipped_td_error_even_at_delta(delta):
    each = jax.vmap(jax.grad(huber_loss), in_axes=(0, None))
    gradient = each(jnp.asarray(TD), jnp.float32(delta))
    np.testing.assert_allclose(gradient, np.clip(TD, -delta, delta), rtol=1e-6)


@pytest.mark.parametrize("delta", [1e6, np.inf])
def test_huber_loss_with_a_large_delta_is_the_squared_loss(delta):
    np.testing.assert_allclose(_huber(TD, delta), jax.vmap(squared_loss)(TD), rtol=1e-6)
    gradient = jax.vmap(jax.grad(huber_loss), in_axes=(0, None))
    np.testing.assert_allclose(gradient(jnp.asarray(TD), jnp.float32(delta)), TD, rtol=1e-6)


def test_weighted_mean_divides_by_the_batch_not_by_the_weights():
    mean = weighted_mean(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 0.5, 0.0, 0.25]))
    np.testing.assert_allclose(mean, 0.75)


def test_weighted_mean_with_equal_weights_of_one_is_the_mean():
    losses = jnp.asarray(np.random.default_rng(0).random(32), jnp.float32)
    np.testing.assert_allclose(weighted_mean(losses, jnp.ones(32)), np.mean(losses), rtol=1e-6)


def test_a_batch_without_vmap_is_rejected():
    batch = jnp.zeros(4)
    for call in (
        lambda: td_error(jnp.zeros((4, 2)), jnp.zeros(4, jnp.int32), batch),
        lambda: squared_loss(batch),
        lambda: huber_loss(batch, jnp.float32(1)),
        lambda: weighted_mean(batch, jnp.float32(1)),
    ):
        with pytest.raises(AssertionError, match="rank"):
            call()
