"""Comparison and slicing of pytrees."""

import jax
import jax.numpy as jnp
import numpy as np


def as_arrays(tree):
    """Return the leaves as NumPy arrays, keys as their key data."""

    def array(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(array, tree)


def assert_identical(one, other):
    """Assert that structure and leaves are equal, floats exactly."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, as_arrays(one), as_arrays(other))


def assert_near(one, other, tolerance):
    """Assert equality: of floats within a tolerance, absolute and relative, of others exactly."""

    def near(a, b):
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)
        else:
            np.testing.assert_array_equal(a, b)

    jax.tree.map(near, as_arrays(one), as_arrays(other))


def slice_of(tree, index):
    """Return slice ``index`` of the first axis of each leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
