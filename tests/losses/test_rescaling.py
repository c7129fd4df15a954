"""Value rescaling: known values, the inverse, and precision near zero against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.losses import rescale, unscale

VALUES = np.array([1e-30, 1e-12, 1e-7, 1e-4, 0.3, 1.0, 8.0, 1e4, 1e9])
EPSILON = 1e-3


def exact(value):
    """Return h(v) in float64; ``expm1`` of half a logarithm does not cancel near 0."""
    return np.sign(value) * np.expm1(0.5 * np.log1p(np.abs(value))) + EPSILON * value


@pytest.mark.parametrize("sign", [1, -1])
def test_rescaled_values_are_exact_to_float32_near_zero_and_far_from_it(sign):
    ours = rescale(jnp.asarray(sign * VALUES, jnp.float32), jnp.float32(EPSILON))
    np.testing.assert_allclose(ours, exact(sign * VALUES), rtol=3e-7)


def test_a_small_value_by_hand():
    h = rescale(jnp.float32(1e-7), jnp.float32(EPSILON))
    np.testing.assert_allclose(h, 5.01e-8, rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_inverse_is_exact_to_float32_near_zero_and_far_from_it(sign):
    rescaled = jnp.asarray(exact(sign * VALUES), jnp.float32)
    np.testing.assert_allclose(unscale(rescaled, jnp.float32(EPSILON)), sign * VALUES, rtol=2e-6)


def test_zero_is_a_fixed_point_with_finite_slopes():
    zero, epsilon = jnp.float32(0), jnp.float32(EPSILON)
    assert rescale(zero, epsilon) == 0
    assert unscale(zero, epsilon) == 0
    np.testing.assert_allclose(jax.grad(rescale)(zero, epsilon), 0.5 + EPSILON, rtol=1e-6)
