"""Spectral normalisation: the largest singular value, its gradient, and where its state is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.config import Config
from jaxdqn.envs import make_environment
from jaxdqn.networks import Conv, make_network
from jaxdqn.networks.spectral import POWER_VECTOR, iterate, refresh, spectral_norm
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import EnvSpec
from tests.toys import quick_jit, tiny

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 4, 6)).astype(np.float32)
MATRIX = KERNEL.reshape(36, 6)


def converged(kernel, steps=200):
    vector = jnp.ones(kernel.shape[-1])
    return jax.lax.fori_loop(0, steps, lambda _, v: iterate(kernel, v), vector)


def test_power_iteration_converges_to_the_largest_singular_value_of_numpy():
    left, values, right = np.linalg.svd(MATRIX)
    vector = converged(jnp.asarray(KERNEL))
    assert abs(float(vector @ right[0])) == pytest.approx(1, abs=1e-4)
    assert float(spectral_norm(jnp.asarray(KERNEL), vector)) == pytest.approx(values[0], rel=1e-5)
    # The derivative of the largest singular value is the product of its singular vectors.
    gradient = jax.grad(spectral_norm)(jnp.asarray(KERNEL), vector)
    np.testing.assert_allclose(gradient.reshape(36, 6), np.outer(left[:, 0], right[0]), atol=1e-3)


def test_an_iteration_is_that_of_numpy_from_any_vector():
    vector = RNG.normal(size=6).astype(np.float32)
    left = MATRIX @ vector / np.linalg.norm(MATRIX @ vector)
    right = MATRIX.T @ left / np.linalg.norm(MATRIX.T @ left)
    np.testing.assert_allclose(iterate(jnp.asarray(KERNEL), jnp.asarray(vector)), right, atol=1e-5)
    # Without the iteration the estimate is |W u| of the unit vector u: below the norm.
    estimate = float(spectral_norm(jnp.asarray(KERNEL), jnp.asarray(vector)))
    length = np.linalg.norm(MATRIX @ (vector / np.linalg.norm(vector)))
    assert estimate == pytest.approx(length, rel=1e-5)
    assert estimate < np.linalg.svd(MATRIX)[1][0]


def test_no_gradient_flows_to_the_vector_and_a_kernel_of_zeros_is_finite():
    vector = jnp.ones(6)
    _, of_vector = jax.grad(spectral_norm, (0, 1))(jnp.asarray(KERNEL), vector)
    assert (of_vector == 0).all()
    assert (iterate(jnp.zeros((3, 3, 4, 6)), vector) == 0).all()


@pytest.mark.parametrize("implementation", ["lax", "patches"])
def test_a_spectral_convolution_is_one_with_the_divided_kernel(implementation):
    x = jnp.asarray(RNG.normal(size=(2, 5, 5, 4)), jnp.float32)
    vector, bias = converged(jnp.asarray(KERNEL)), jnp.arange(6.0)
    plain = Conv(6, 3, 1, implementation, padding="SAME")
    spectral = Conv(6, 3, 1, implementation, padding="SAME", spectral=True)
    norm = np.linalg.svd(MATRIX)[1][0]
    expected = plain.apply({"params": {"kernel": KERNEL / norm, "bias": bias}}, x)
    params = {"params": {"kernel": KERNEL, "bias": bias, POWER_VECTOR: vector}}
    np.testing.assert_allclose(spectral.apply(params, x), expected, atol=1e-4)


def test_refresh_changes_the_vectors_and_nothing_else():
    params = {"params": {"a": {"kernel": KERNEL, POWER_VECTOR: np.ones(6, np.float32)},
                         "b": {"kernel": KERNEL, "bias": np.ones(6)}}}  # fmt: skip
    after = refresh(params)
    expected = iterate(jnp.asarray(KERNEL), jnp.ones(6))
    np.testing.assert_allclose(after["params"]["a"][POWER_VECTOR], expected, rtol=1e-6)
    assert after["params"]["b"]["bias"] is params["params"]["b"]["bias"]
    assert after["params"]["a"]["kernel"] is KERNEL


def vectors(params):
    return [
        leaf
        for path, leaf in jax.tree.leaves_with_path(params)
        if POWER_VECTOR in jax.tree_util.keystr(path)
    ]


def kernels(params):
    """Return the kernels that stand beside a power vector."""
    found = []

    def walk(node):
        if isinstance(node, dict):
            if POWER_VECTOR in node:
                found.append(node["kernel"])
            for value in node.values():
                walk(value)

    walk(params)
    return found


def test_initial_vectors_are_near_the_leading_ones():
    config = Config(network="impala", spectral_norm=True)
    network = make_network(config, EnvSpec("test", (8, 8, 2), np.dtype("float32"), 3, None))
    params = quick_jit(network.init)(jax.random.key(0), jnp.ones((1, 8, 8, 2)))
    assert len(kernels(params)) == 12  # two in each of the two blocks of three sections
    for kernel, vector in zip(kernels(params), vectors(params), strict=True):
        exact = np.linalg.svd(np.asarray(kernel).reshape(-1, kernel.shape[-1]))[1][0]
        assert 0.9 * exact < float(spectral_norm(kernel, vector)) <= exact * (1 + 1e-5)


@pytest.mark.slow  # compiles a training step with fifteen convolutions
def test_training_refreshes_the_vectors_after_the_gradient_step_and_the_target_keeps_its_own():
    def observe(state):
        return jnp.full((8, 8, 1), state, jnp.float32) / 7

    environment = make_environment(
        lambda key: (jnp.int32(0), observe(jnp.int32(0))),
        lambda key, state, action: (state + 1, observe(state + 1), jnp.float32(1), state == 6),
        name="count",
        num_actions=2,
    )
    config = tiny(network="impala", dense_size=8, spectral_norm=True, target_period=100)
    trainer = make_trainer(config, environment=environment)
    before = quick_jit(trainer.init)(jax.random.key(0))
    after, _ = quick_jit(trainer.step)(before)
    changed = False
    for kernel, old, new in zip(kernels(after.agent.params), vectors(before.agent.params),
                                vectors(after.agent.params), strict=True):  # fmt: skip
        np.testing.assert_allclose(new, iterate(kernel, old), atol=1e-5)
        changed |= bool((new != old).any())
    assert changed
    for old, new in zip(vectors(before.agent.target_params),
                        vectors(after.agent.target_params), strict=True):  # fmt: skip
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", ["torso_width", "pool_size", "spectral_norm"])
def test_the_options_of_impala_need_it(name):
    value = True if name == "spectral_norm" else 2
    with pytest.raises(ValueError, match=rf"{name}={value}: must be .* unless network='impala'"):
        Config(network="nature", **{name: value})
