"""Quantile regression: against rlax, and a process with known return quantiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.losses import (
    quantile_huber_loss,
    quantile_midpoints,
    quantile_target,
)
from tests.losses.distributions import GAMMA, RETURNS, batch, descend
from tests.toys import quick_jit

rlax = pytest.importorskip("rlax")


@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_quantile_losses_and_gradients_agree_with_rlax(delta):
    b, fractions = batch(3, atoms=7), quantile_midpoints(7)
    names = ("a_tm1", "r_t", "discount_t", "selector", "logits_t")

    def ours(quantiles):
        def one(quantiles, a_tm1, r_t, discount_t, selector, quantiles_t):
            target = quantile_target(r_t, discount_t, quantiles_t, selector)
            return quantile_huber_loss(quantiles[a_tm1], fractions, target, jnp.float32(delta))

        return jax.vmap(one)(quantiles, *(jnp.asarray(b[name]) for name in names))

    def theirs(quantiles):
        def one(quantiles, a_tm1, r_t, discount_t, selector, quantiles_t):
            # rlax has actions as columns, and selects the action by the mean of a distribution.
            return rlax.quantile_q_learning(
                quantiles.T, fractions, a_tm1, r_t, discount_t,
                jnp.broadcast_to(selector[None, :], (7, 4)), quantiles_t.T, delta,
            )  # fmt: skip

        # rlax does not divide the Huber loss by delta.
        return jax.vmap(one)(quantiles, *(jnp.asarray(b[name]) for name in names)) / delta

    quantiles = jnp.asarray(b["logits_tm1"])
    np.testing.assert_allclose(quick_jit(ours)(quantiles), quick_jit(theirs)(quantiles), rtol=1e-4)
    np.testing.assert_allclose(
        quick_jit(jax.grad(lambda x: ours(x).sum()))(quantiles),
        quick_jit(jax.grad(lambda x: theirs(x).sum()))(quantiles),
        atol=1e-5,
    )


def test_quantile_regression_learns_the_quantiles_known_in_closed_form():
    fractions = quantile_midpoints(15)

    def loss(quantiles, r_t):
        target = quantile_target(r_t, jnp.float32(GAMMA), quantiles[None], jnp.zeros(1))
        return quantile_huber_loss(quantiles, fractions, target, jnp.float32(0.02))

    learned = descend(loss, jnp.zeros(15), steps=3_000, rate=0.3)
    # The target is a mixture of 15 shifted atoms, so the outer quantiles are slightly too small.
    np.testing.assert_allclose(learned, RETURNS.ppf(np.asarray(fractions)), atol=0.12)
    np.testing.assert_allclose(learned.mean(), RETURNS.mean(), atol=0.03)
