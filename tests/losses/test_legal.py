"""Values of legal actions: maxima, argmaxima and softmaxes over them, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.losses import (
    ILLEGAL,
    categorical_target,
    double_q_target,
    legal_values,
    munchausen_bonus,
    q_learning_target,
    quantile_soft_target,
    quantile_target,
    rescale,
    soft_q_target,
    some_legal,
    unscale,
)

Q = jnp.float32([1e9, 3.0, 1.0, 2.0])
LEGAL = jnp.asarray([False, True, False, True])
LOW = legal_values(Q, LEGAL)
R, DISCOUNT = jnp.float32(10), jnp.float32(0.9)


def test_illegal_actions_have_a_finite_value_below_every_other():
    np.testing.assert_array_equal(LOW, np.float32([ILLEGAL, 3, ILLEGAL, 2]))
    assert legal_values(Q, ()) is Q
    np.testing.assert_array_equal(legal_values(Q, jnp.ones(4, bool)), Q)


def test_where_no_action_is_legal_the_mask_has_no_effect():
    rows = jnp.asarray([[False, False], [True, False]])
    np.testing.assert_array_equal(some_legal(rows), [[True, True], [True, False]])
    np.testing.assert_array_equal(legal_values(Q, jnp.zeros(4, bool)), Q)


def test_the_greatest_value_is_that_of_a_legal_action():
    assert float(q_learning_target(R, DISCOUNT, LOW)) == pytest.approx(10 + 0.9 * 3)


def test_the_action_of_double_q_learning_is_legal():
    # The selector prefers action 0, which is illegal, then action 3, whose target value is 2.
    selector = legal_values(jnp.float32([9, 0, 8, 5]), LEGAL)
    assert float(double_q_target(R, DISCOUNT, Q, selector)) == pytest.approx(10 + 0.9 * 2)


@pytest.mark.parametrize("temperature", [1e-3, 0.03, 0.5, 10.0])
def test_soft_values_and_bonuses_are_those_of_the_softmax_over_legal_actions(temperature):
    t = jnp.float32(temperature)
    log_sum = 3 + temperature * np.log(1 + np.exp(-1 / temperature))
    np.testing.assert_allclose(soft_q_target(R, DISCOUNT, LOW, t), 10 + 0.9 * log_sum, rtol=1e-5)
    bonus = munchausen_bonus(LOW, jnp.int32(3), t, jnp.float32(0.9), jnp.float32(-1))
    np.testing.assert_allclose(bonus, 0.9 * max(2 - log_sum, -1), rtol=1e-4, atol=1e-6)


def test_the_distribution_of_a_legal_action_is_the_target():
    atoms = jnp.linspace(0, 4, 5)
    logits = jnp.log(jnp.asarray([[1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0],
                                  [0, 0, 1, 0, 0]], jnp.float32) + 1e-9)  # fmt: skip
    target = categorical_target(jnp.float32(0.5), jnp.float32(1), logits, LOW, atoms)
    np.testing.assert_allclose(target, [0, 0, 0, 0.5, 0.5], atol=1e-6)


def test_quantiles_are_those_of_legal_actions():
    quantiles = jnp.float32([[1e9, 2e9], [2, 4], [0, 2], [1, 3]])
    np.testing.assert_allclose(
        quantile_target(R, DISCOUNT, quantiles, LOW), [10 + 0.9 * 2, 10 + 0.9 * 4]
    )
    # Of the policy exp(3), exp(2) over two actions, by the definition of the soft value.
    policy = np.exp([3.0, 2.0]) / np.exp([3.0, 2.0]).sum()
    theta = np.array([[2, 4], [1, 3]])
    soft = policy @ (theta - np.log(policy)[:, None])
    found = quantile_soft_target(R, DISCOUNT, quantiles, LOW, jnp.float32(1))
    np.testing.assert_allclose(found, 10 + 0.9 * soft, rtol=1e-5)


def test_rescaled_values_keep_illegal_actions_lowest_and_finite():
    low = legal_values(rescale(Q, jnp.float32(1e-3)), LEGAL)
    plain = unscale(low, jnp.float32(1e-3))
    assert np.isfinite(plain).all()
    assert int(jnp.argmax(plain)) == 1
    np.testing.assert_allclose(plain[jnp.array([1, 3])], [3, 2], rtol=1e-5)


def test_no_gradient_or_value_becomes_nan():
    def loss(q):
        low = legal_values(q, LEGAL)
        return jnp.sum(jax.nn.softmax(low) * low) + jax.nn.logsumexp(low / 0.01) + jnp.max(low)

    gradient = jax.grad(loss)(jnp.float32([jnp.inf, 3, jnp.nan, 2]))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[jnp.array([0, 2])], 0)
