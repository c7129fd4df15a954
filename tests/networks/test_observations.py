"""Tests of the scaling of observations by 255 and of the channel axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.config import Config
from jaxdqn.networks import make_network
from tests.networks.test_build import _layers, _random_params, _spec


def q_values(config, shape, obs):
    network = make_network(config, _spec(shape, obs.dtype))
    params = _random_params(network.init, jax.ShapeDtypeStruct(obs.shape, obs.dtype))
    return np.asarray(network.apply(params, None, (), obs, jnp.zeros(len(obs), bool))[0].q_values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float32])
def test_one_hot_vectors_give_equal_q_values_in_every_dtype(dtype):
    one_hot = np.eye(5, dtype=bool)
    expected = q_values(Config(hidden_sizes=(8,)), (5,), one_hot)
    np.testing.assert_array_equal(
        q_values(Config(hidden_sizes=(8,)), (5,), one_hot.astype(dtype)), expected
    )


def test_stacked_vectors_are_not_treated_as_pictures():
    flags = np.random.default_rng(0).integers(0, 2, (4, 5, 3)).astype(bool)
    config = Config(hidden_sizes=(8,), frame_stack=3)
    np.testing.assert_array_equal(
        q_values(config, (5,), flags.astype(np.uint8)), q_values(config, (5,), flags)
    )


@pytest.mark.parametrize(
    ("scale", "dtype", "divided"),
    [
        ("auto", np.uint8, True),
        ("never", np.uint8, False),
        ("always", np.uint8, True),
        ("auto", np.int32, False),
        ("always", np.int32, True),
        ("always", np.float32, True),
    ],
)
def test_the_option_controls_the_division_of_pictures(scale, dtype, divided):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3)).astype(dtype)
    whole = pixels.astype(np.float32)
    expected = q_values(Config(), (8, 8, 3), whole / np.float32(255) if divided else whole)
    found = q_values(Config(scale_observations=scale), (8, 8, 3), pixels)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_booleans_cannot_always_be_scaled():
    with pytest.raises(ValueError, match=r"scale_observations='always': must be auto or never"):
        make_network(Config(scale_observations="always"), _spec((5,), "bool"))


@pytest.mark.parametrize("shape", [(4, 84, 84), (1, 84, 84), (3, 64, 80), (16, 10, 10), (2, 5, 6)])
@pytest.mark.parametrize("network", ["auto", "minatar"])
def test_shapes_that_look_channel_first_are_rejected(shape, network):
    with pytest.raises(ValueError, match=r"channels='auto': must be 'first' for pictures \[C, H"):
        make_network(Config(network=network), _spec(shape, "uint8"))


@pytest.mark.parametrize(
    "shape", [(84, 84, 4), (10, 10, 4), (10, 10, 10), (64, 80, 3), (8, 8, 119), (13, 11, 12)]
)
def test_shapes_that_look_channel_last_are_accepted(shape):
    assert (3, 3, shape[2], 16) in _layers(make_network(Config(), _spec(shape)), shape)


def test_channels_first_are_transposed():
    network = make_network(Config(channels="first"), _spec((4, 84, 84), "uint8"))
    assert (8, 8, 4, 32) in _layers(network, (4, 84, 84), "uint8")
    stacked = make_network(Config(channels="first", frame_stack=2), _spec((3, 10, 12), "bool"))
    assert (3, 3, 6, 16) in _layers(stacked, (3, 10, 12, 2), "bool")
    obs = np.random.default_rng(0).integers(0, 2, (2, 4, 6, 6)).astype(bool)
    np.testing.assert_array_equal(
        q_values(Config(channels="first"), (4, 6, 6), obs),
        q_values(Config(), (6, 6, 4), np.moveaxis(obs, 1, 3)),
    )


def test_channels_last_accepts_an_ambiguous_shape():
    network = make_network(Config(channels="last"), _spec((4, 10, 16)))
    assert (3, 3, 16, 16) in _layers(network, (4, 10, 16))


def test_a_flattened_observation_has_no_channels():
    assert (4 * 84 * 84, 128) in _layers(
        make_network(Config(network="mlp"), _spec((4, 84, 84))), (4, 84, 84)
    )
    with pytest.raises(ValueError, match="channels='first': must be auto unless network="):
        Config(network="mlp", channels="first")
    for shape in ((4,), (10, 5), (4, 2, 2)):
        with pytest.raises(ValueError, match=r"channels='first': must be left out for obs"):
            make_network(Config(channels="first"), _spec(shape))
