"""Noisy layers: one product of a batch that shares its noise, two of a few rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.presets import preset
from jaxdqn.networks import make_network
from jaxdqn.networks.layers import NOISE, NoisyDense
from jaxdqn.types import EnvSpec

KEY = jax.random.key(3)
LAYER = NoisyDense(5)


def rows_and_params(rows=9, inputs=12):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, inputs)), jnp.float32)
    return x, LAYER.init(jax.random.key(0), x)


def apply(params, x):
    return LAYER.apply(params, x, rngs={NOISE: KEY})


def row_by_row(params, x):
    """Apply the layer to batches of one row, which all have the same noise."""
    return jax.vmap(lambda row: apply(params, row[None])[0])(x)


def products(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments)).count("dot_general")


def test_a_batch_has_the_values_and_gradients_of_its_rows_with_the_same_noise():
    x, params = rows_and_params()

    def outcome(function):
        return jax.value_and_grad(lambda p, x: jnp.sum(jnp.sin(function(p, x))), (0, 1))(params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        outcome(apply),
        outcome(row_by_row),
    )
    assert not np.allclose(apply(params, x), LAYER.apply(params, x))


def test_a_batch_costs_one_product_and_few_rows_two():
    x, params = rows_and_params(inputs=32)
    wide = NoisyDense(16)
    params = wide.init(jax.random.key(0), x)

    def output(params, x):
        return wide.apply(params, x, rngs={NOISE: KEY})

    assert products(output, params, x) == 1
    assert products(output, params, x[:1]) == 2
    assert products(output, params, x[:2]) == 1


@pytest.mark.parametrize(("rows", "expected"), [(1, 2), (9, 2), (10, 1), (18, 1)])
def test_the_rows_of_one_example_cost_two_products_and_those_of_several_one(rows, expected):
    x, params = rows_and_params(rows=rows)
    layer = NoisyDense(5, rows_per_example=9)
    assert products(lambda x: layer.apply(params, x, rngs={NOISE: KEY}), x) == expected


@pytest.mark.parametrize(
    ("name", "fields", "quantiles"),
    [("iqn", {}, 32), ("iqn", {"dueling": True}, 32), ("iqn", {"quantiles": 7}, 7),
     ("btr", {}, 8), ("rainbow", {}, None)],
)  # fmt: skip
def test_acting_with_noise_has_no_matrix_for_each_environment(name, fields, quantiles):
    config = preset(name, env="Breakout-MinAtar", noisy=True, network="mlp", dense_size=None,
                    spectral_norm=False, **fields)  # fmt: skip
    assert quantiles in (None, config.quantiles)
    spec = EnvSpec("test", (4,), np.dtype("float32"), 2, None)
    network, environments = make_network(config, spec), 41
    params = jax.eval_shape(network.init, KEY, jax.ShapeDtypeStruct((1, 4), np.float32))

    def act(params, keys, obs):
        def one(key, obs):
            return network.apply(params, key, (), obs[None], jnp.zeros(1, bool))[0].q_values

        return jax.vmap(one)(keys, obs)

    keys = jax.eval_shape(lambda: jax.random.split(KEY, environments))
    text = str(jax.make_jaxpr(act)(params, keys, jnp.zeros((environments, 4))))
    kernels = {leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2}
    assert len(kernels) > 1
    for inputs, outputs in kernels:
        assert f"f32[{environments},{inputs},{outputs}]" not in text


@pytest.mark.parametrize("batch", [2, 16, 32])
def test_implicit_quantiles_cost_one_product_of_each_noisy_layer_in_learning(batch):
    config = preset("iqn", env="CartPole-v1", noisy=True, hidden_sizes=(24, 16))
    network = make_network(config, EnvSpec("test", (4,), np.dtype("float32"), 2, None))
    obs, first = jnp.zeros((batch, 4)), jnp.zeros(batch, bool)
    params = jax.eval_shape(network.init, KEY, obs[:1])
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    noisy = [leaf for leaf in kernels if kernels.count(leaf) > 1]  # mu and sigma

    def q_values(params):
        return network.apply(params, KEY, (), obs, first)[0].q_values

    plain = len(kernels) - len(noisy)
    assert len(noisy) == 2 * 4
    assert products(q_values, params) == plain + len(noisy) // 2


def test_environments_with_separate_noise_share_the_matrices():
    x, params = rows_and_params()
    keys = jax.random.split(KEY, 9)

    def act(key, row):
        return LAYER.apply(params, row[None], rngs={NOISE: key})[0]

    text = str(jax.make_jaxpr(jax.vmap(act))(keys, x))
    assert "f32[9,12,5]" not in text


@pytest.mark.parametrize("x64", [False, True])
def test_parameters_are_float32_whatever_the_default(x64):
    with jax.enable_x64(x64):
        _, params = rows_and_params()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
