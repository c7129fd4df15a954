"""Soft targets and the Munchausen bonus: NumPy, and the limit of a low temperature."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.losses import (
    munchausen_bonus,
    q_learning_target,
    soft_q_target,
)


def test_soft_targets_are_the_value_and_entropy_of_the_softmax_policy():
    rng = np.random.default_rng(0)
    q = rng.normal(size=6)
    for temperature in (0.05, 0.7, 3.0):
        policy = np.exp(q / temperature - (q / temperature).max())
        policy /= policy.sum()
        value = policy @ (q - temperature * np.log(policy))
        target = soft_q_target(
            jnp.float32(1.5), jnp.float32(0.9), jnp.float32(q), jnp.float32(temperature)
        )
        np.testing.assert_allclose(target, 1.5 + 0.9 * value, rtol=1e-5)


def test_a_soft_target_at_low_temperature_is_the_plain_one_without_overflow():
    q = jnp.array([500.0, -300.0, 499.0])
    args = (jnp.float32(2), jnp.float32(0.99), q)
    np.testing.assert_allclose(
        soft_q_target(*args, jnp.float32(1e-3)), q_learning_target(*args), rtol=1e-6
    )


@pytest.mark.parametrize(("action", "clipped"), [(0, False), (1, False), (2, True)])
def test_the_munchausen_bonus_is_the_scaled_clipped_log_policy(action, clipped):
    q, temperature = np.array([1.0, 0.98, -2.0]), 0.03
    log_policy = q / temperature - np.log(np.exp((q - 1.0) / temperature).sum()) - 1.0 / temperature
    bonus = munchausen_bonus(
        jnp.float32(q), jnp.int32(action), jnp.float32(temperature), jnp.float32(0.9),
        jnp.float32(-1.0),
    )  # fmt: skip
    expected = 0.9 * max(temperature * log_policy[action], -1.0)
    np.testing.assert_allclose(bonus, expected, rtol=1e-4)
    assert (float(bonus) == pytest.approx(-0.9)) == clipped
