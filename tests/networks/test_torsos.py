"""Torsos and heads: NumPy, and their published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.networks import Layers, LinearHead, MinAtarTorso, MLPTorso, NatureTorso


def _random_params(init, *inputs):
    """Return random parameters; compiling an initialiser would take seconds."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


def _size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_mlp_torso_is_relu_of_matrix_products():
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 3)), jnp.float32)
    torso = MLPTorso((7, 4))
    params = _random_params(torso.init, obs)
    x = np.asarray(obs).reshape(5, 6)
    for layer in ("Dense_0", "Dense_1"):
        weights = params["params"][layer]
        x = np.maximum(x @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"]), 0)
    np.testing.assert_allclose(torso.apply(params, obs), x, atol=1e-5)


def test_mlp_torso_without_layers_is_the_flattened_observation():
    obs = jnp.arange(12, dtype=jnp.float32).reshape(2, 3, 2)
    torso = MLPTorso(())
    params = torso.init(jax.random.key(0), obs)
    assert _size(params) == 0
    np.testing.assert_array_equal(torso.apply(params, obs), np.arange(12).reshape(2, 6))


def test_minatar_torso_has_the_published_size_for_boolean_frames():
    obs = jnp.zeros((2, 10, 10, 4), jnp.bool_)
    torso = MinAtarTorso()
    params = jax.eval_shape(torso.init, jax.random.key(0), obs)
    assert _size(params) == (3 * 3 * 4 * 16 + 16) + (8 * 8 * 16 * 128 + 128)
    assert jax.eval_shape(torso.apply, params, obs).shape == (2, 128)


def test_nature_torso_has_the_published_size_for_stacked_frames():
    torso = NatureTorso()
    shapes = jax.eval_shape(torso.init, jax.random.key(0), jnp.zeros((1, 84, 84, 4), jnp.uint8))
    convolutions = (8 * 8 * 4 * 32 + 32) + (4 * 4 * 32 * 64 + 64) + (3 * 3 * 64 * 64 + 64)
    assert _size(shapes) == convolutions + (7 * 7 * 64 * 512 + 512)


LEVELS = np.array([[0, 51, 255]], np.uint8)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1)])
def test_uint8_vectors_and_matrices_are_not_scaled(shape):
    obs = jnp.asarray(LEVELS.reshape(shape))
    np.testing.assert_array_equal(MLPTorso(()).apply({}, obs), LEVELS)


def test_uint8_pictures_are_scaled_to_one_and_booleans_are_not():
    scaled = MLPTorso(()).apply({}, jnp.asarray(LEVELS.reshape(1, 3, 1, 1)))
    np.testing.assert_allclose(scaled, [[0.0, 0.2, 1.0]], rtol=1e-6)
    flags = jnp.array([True, False]).reshape(1, 2, 1, 1)
    np.testing.assert_array_equal(MLPTorso(()).apply({}, flags), [[1, 0]])


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.float32])
def test_scaling_may_be_forced_or_forbidden(shape, dtype):
    obs = jnp.asarray(LEVELS.reshape(shape)).astype(dtype)
    always = MLPTorso((), scale=True).apply({}, obs)
    np.testing.assert_allclose(always, [[0.0, 0.2, 1.0]], rtol=1e-6)
    np.testing.assert_array_equal(MLPTorso((), scale=False).apply({}, obs), LEVELS)


@pytest.mark.parametrize("stack", [(), (2,)])
def test_channels_first_are_the_same_pictures_transposed(stack):
    last = np.random.default_rng(0).integers(0, 255, (2, 10, 8, 3, *stack), dtype=np.uint8)
    first = np.moveaxis(last, 3, 1)
    torso = MinAtarTorso(channels_first=True)
    params = _random_params(torso.init, first)
    np.testing.assert_array_equal(torso.apply(params, first), MinAtarTorso().apply(params, last))
    np.testing.assert_array_equal(MLPTorso(()).apply({}, jnp.array([[3, -7]])), [[3, -7]])


@pytest.mark.parametrize(("torso", "side"), [(MinAtarTorso("lax"), 10), (NatureTorso("lax"), 36)])
def test_image_torsos_merge_stacked_axes_into_channels(torso, side):
    obs = np.random.default_rng(0).integers(0, 256, (2, side, side, 2, 3)).astype(np.uint8)
    params = _random_params(torso.init, obs)
    apply = jax.jit(torso.apply)
    merged = obs.reshape(2, side, side, 6)
    np.testing.assert_array_equal(apply(params, obs), apply(params, merged))


@pytest.mark.parametrize("torso", [MLPTorso((8,)), MinAtarTorso()])
def test_bfloat16_computes_in_bfloat16_from_float32_parameters(torso):
    narrow = torso.clone(layers=Layers(dtype=jnp.dtype("bfloat16")))
    obs = jnp.asarray(np.random.default_rng(0).random((4, 6, 6, 2)), jnp.float32)
    initial = jax.eval_shape(narrow.init, jax.random.key(0), obs)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    params = _random_params(narrow.init, obs)
    features = jax.jit(narrow.apply)(params, obs)
    assert features.dtype == jnp.bfloat16
    exact = np.asarray(jax.jit(torso.apply)(params, obs))
    difference = np.abs(np.asarray(features, np.float32) - exact)
    assert 0 < difference.max() < 0.02 * exact.max()


def test_the_head_distinguishes_values_that_bfloat16_cannot():
    features = jnp.array([[1.0, 1.0]], jnp.bfloat16)
    head = LinearHead(2)
    kernel = jnp.array([[100.0, 100.0], [0.1, 0.2]])
    params = {"params": {"Dense_0": {"kernel": kernel, "bias": jnp.zeros(2)}}}
    q = head.apply(params, features).q_values
    assert q.dtype == jnp.float32
    np.testing.assert_allclose(q, [[100.1, 100.2]], rtol=1e-6)
