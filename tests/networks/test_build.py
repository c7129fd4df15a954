"""The network of a configuration, and configurations and networks that are rejected."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.config import Config
from jaxdqn.networks import from_module, make_network
from jaxdqn.types import EnvSpec, Network, QOutput

KEY = jax.random.key(0)


def _spec(shape, dtype="float32", num_actions=3):
    return EnvSpec("test", shape, np.dtype(dtype), num_actions, None)


def _random_params(init, *inputs):
    """Return random parameters; compiling an initialiser would take seconds."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


def _layers(network, shape, dtype="float32"):
    """Return the shapes of all kernels, in the order of their names."""
    obs = jax.ShapeDtypeStruct((2, *shape), np.dtype(dtype))
    params = jax.eval_shape(network.init, KEY, obs)
    return [
        leaf.shape for path, leaf in jax.tree.leaves_with_path(params) if "kernel" in str(path[-1])
    ]


@pytest.mark.parametrize(
    ("obs_shape", "dtype", "frame_stack", "first_kernel"),
    [
        ((4,), "float32", 1, (4, 128)),
        ((4,), "float32", 3, (12, 128)),
        ((10, 5), "float32", 1, (50, 128)),
        ((10, 5), "float32", 2, (3, 3, 2, 16)),
        ((10, 10, 4), "bool", 1, (3, 3, 4, 16)),
        ((10, 10, 4), "bool", 2, (3, 3, 8, 16)),
        ((84, 84), "uint8", 4, (8, 8, 4, 32)),
        ((84, 84, 3), "uint8", 1, (8, 8, 3, 32)),
        ((84, 84, 3), "float32", 1, (3, 3, 3, 16)),
        # Too small for a 3x3 convolution.
        ((10, 2, 4), "bool", 1, (80, 128)),
    ],
)
def test_auto_selects_the_torso_by_the_shape(obs_shape, dtype, frame_stack, first_kernel):
    config = Config(frame_stack=frame_stack)
    network = make_network(config, _spec(obs_shape, dtype))
    shape = (*obs_shape, frame_stack) if frame_stack > 1 else obs_shape
    kernels = _layers(network, shape, dtype)
    assert first_kernel in kernels
    assert kernels[0][-1] == 3, "the head gives a value for each action"


def test_the_network_of_the_benchmarks_is_an_mlp_of_120_and_84():
    network = make_network(Config(hidden_sizes=(120, 84)), _spec((4,), num_actions=2))
    assert sorted(_layers(network, (4,))) == [(4, 120), (84, 2), (120, 84)]


def test_without_hidden_layers_q_is_linear_and_a_table_for_one_hot_states():
    network = make_network(Config(hidden_sizes=()), _spec((5,)))
    states = jnp.eye(5)
    params = _random_params(network.init, states)
    table, bias = sorted(jax.tree.leaves(params), key=np.ndim, reverse=True)
    output, _ = network.apply(params, KEY, (), states, jnp.zeros(5, jnp.bool_))
    np.testing.assert_allclose(output.q_values, table + bias, rtol=1e-6)


def test_feed_forward_networks_ignore_key_and_first_and_pass_the_carry():
    network = make_network(Config(), _spec((4,)))
    obs = jnp.ones((2, 4))
    params = _random_params(network.init, obs)
    carry = network.initial_carry(2)
    assert carry == ()
    one, carry = network.apply(params, KEY, carry, obs, jnp.zeros(2, jnp.bool_))
    two, carry = network.apply(params, jax.random.key(9), carry, obs, jnp.ones(2, jnp.bool_))
    assert carry == ()
    np.testing.assert_array_equal(one.q_values, two.q_values)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(4,), (10, 10, 4)])
def test_q_values_and_parameters_are_float32_at_either_precision(precision, shape):
    network = make_network(Config(precision=precision), _spec(shape))
    obs = jnp.ones((2, *shape))
    params = jax.eval_shape(network.init, KEY, obs)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    output, _ = jax.eval_shape(network.apply, params, KEY, (), obs, jnp.zeros(2, jnp.bool_))
    assert output.q_values.dtype == jnp.float32


def test_the_implementation_of_convolutions_is_configurable_and_changes_no_value():
    obs = jnp.asarray(np.random.default_rng(0).random((3, 10, 10, 4)) < 0.3)
    values = []
    for implementation in ("lax", "patches"):
        network = make_network(Config(convolution=implementation), _spec((10, 10, 4), "bool"))
        params = _random_params(network.init, obs)
        apply = jax.make_jaxpr(network.apply)(params, KEY, (), obs, jnp.zeros(3, jnp.bool_))
        assert ("conv_general_dilated" in str(apply)) == (implementation == "lax")
        values.append(
            jax.jit(network.apply)(params, KEY, (), obs, jnp.zeros(3, jnp.bool_))[0].q_values
        )
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)


@pytest.mark.parametrize("network", ["minatar", "nature"])
@pytest.mark.parametrize("shape", [(4,), (10, 5), (2, 2, 1)])
def test_a_torso_that_does_not_accept_the_shape_is_rejected_by_name(network, shape):
    with pytest.raises(ValueError, match=rf"network='{network}'.*\({shape[0]}, ?") as error:
        make_network(Config(network=network), _spec(shape))
    assert str(shape) in str(error.value)


class _Narrow(nn.Module):
    num_actions: int

    @nn.compact
    def __call__(self, obs):
        return nn.Dense(self.num_actions, dtype=jnp.bfloat16)(obs)


class _Normalised(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(obs))


def test_a_custom_module_is_wrapped():
    module = _Narrow(3)
    network = make_network(Config(), _spec((4,)), module)
    obs = jnp.ones((2, 4))
    params = _random_params(network.init, obs)
    output, _ = network.apply(params, KEY, (), obs, jnp.zeros(2, jnp.bool_))
    assert output.q_values.shape == (2, 3)
    assert output.q_values.dtype == jnp.float32
    np.testing.assert_array_equal(output.q_values, module.apply(params, obs).astype(jnp.float32))


def test_a_custom_network_is_returned_unchanged():
    custom = Network(
        init=lambda *_: (),
        apply=lambda params, key, carry, obs, first: (QOutput(jnp.zeros((2, 3))), carry),
        initial_carry=lambda _: (),
    )
    assert make_network(Config(), _spec((4,)), custom) is custom
    assert isinstance(from_module(_Narrow(2)), Network)
    with pytest.raises(ValueError, match=r"network: must give q_values of shape \(2, 4\)"):
        make_network(Config(), _spec((4,), num_actions=4), custom)


def test_a_module_with_the_wrong_number_of_actions_is_rejected():
    with pytest.raises(ValueError, match=r"_Narrow: must give q of shape \(batch, 3\)"):
        make_network(Config(), _spec((4,)), _Narrow(2))


def test_a_module_with_variables_other_than_parameters_is_rejected():
    with pytest.raises(ValueError, match=r"_Normalised: must have parameters only.*batch_stats"):
        make_network(Config(), _spec((4,)), _Normalised())


def test_a_network_that_is_not_a_module_is_rejected():
    with pytest.raises(ValueError, match=r"network='mlp'.*flax module"):
        make_network(Config(), _spec((4,)), "mlp")
