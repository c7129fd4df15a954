"""The torsos of IMPALA and Hadamax: sizes by hand, pooling against NumPy, values by layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.config import Config
from jaxdqn.networks import HadamaxTorso, ImpalaTorso, Layers, adaptive_max_pool, make_network
from jaxdqn.types import EnvSpec
from tests.toys import quick_jit

FRAMES = jax.ShapeDtypeStruct((1, 84, 84, 4), jnp.uint8)
RNG = np.random.default_rng(0)


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shapes(torso, obs=FRAMES):
    return jax.eval_shape(torso.init, jax.random.key(0), obs)


def pooled(x, out):
    """Pool [B, H, W, C] by the definition of PyTorch's documentation."""
    _, height, width, _ = x.shape

    def bounds(i, n):
        return int(np.floor(i * n / out)), int(np.ceil((i + 1) * n / out))

    y = np.empty((x.shape[0], out, out, x.shape[3]), x.dtype)
    for i in range(out):
        for j in range(out):
            (top, bottom), (left, right) = bounds(i, height), bounds(j, width)
            y[:, i, j] = x[:, top:bottom, left:right].max((1, 2))
    return y


@pytest.mark.parametrize(
    ("shape", "out"),
    [((2, 11, 11, 3), 6), ((1, 12, 12, 2), 6), ((2, 7, 5, 2), 3), ((1, 4, 4, 1), 4)],
)
def test_adaptive_max_pooling_is_that_of_pytorch(shape, out):
    x = RNG.normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(adaptive_max_pool(jnp.asarray(x), out), pooled(x, out))


def test_adaptive_max_pooling_worked_by_hand():
    # 5 to 2: the ranges 0..2 and 2..4 overlap in the middle.
    x = jnp.asarray([9.0, 1.0, 7.0, 2.0, 3.0])
    image = jnp.broadcast_to(x[:, None], (5, 5))[None, :, :, None]
    assert adaptive_max_pool(image, 2)[0, :, :, 0].tolist() == [[9, 9], [7, 7]]
    with pytest.raises(ValueError, match="pool_size=6: must be at most 5"):
        adaptive_max_pool(image, 6)


def impala_size(width, pool, dense, channels_in=4):
    total, previous = 0, channels_in
    for channels in (16 * width, 32 * width, 32 * width):
        total += (9 * previous + 1) * channels + 4 * (9 * channels + 1) * channels
        previous = channels
    features = previous * (pool or 11) ** 2
    return total + (features + 1) * dense


@pytest.mark.parametrize(("width", "pool"), [(1, None), (2, None), (2, 6)])
def test_impala_has_the_published_size(width, pool):
    torso = ImpalaTorso(width=width, pool_size=pool)
    params = shapes(torso)
    assert size(params) == impala_size(width, pool, 256)
    assert jax.eval_shape(torso.apply, params, FRAMES).shape == (1, 256)


def test_impala_at_width_one_is_the_network_of_the_paper():
    # 84 -> 42 -> 21 -> 11 pixels; the weights of the three sections.
    assert size(shapes(ImpalaTorso(hidden_sizes=()))) == 9_872 + 41_632 + 46_240
    torso = ImpalaTorso(hidden_sizes=())
    assert jax.eval_shape(torso.apply, shapes(torso), FRAMES).shape == (1, 11 * 11 * 32)


def convolved(x, weights):
    y = jax.lax.conv_general_dilated(
        x, weights["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + weights["bias"][None, None, None]


def random_params(torso, obs):
    made = jax.eval_shape(torso.init, jax.random.key(0), obs)
    return jax.tree.map(lambda leaf: 0.1 * RNG.normal(size=leaf.shape).astype(np.float32), made)


def test_impala_computes_its_sections_and_blocks():
    obs = jnp.asarray(RNG.normal(size=(2, 9, 8, 3)), jnp.float32)
    torso = ImpalaTorso(hidden_sizes=())
    params = random_params(torso, obs)
    conv = iter(range(15))

    def layer(x):
        return convolved(x, params["params"][f"Conv_{next(conv)}"])

    x = obs
    for _ in range(3):
        x = nn.max_pool(layer(x), (3, 3), (2, 2), "SAME")
        for _ in range(2):
            x = x + layer(nn.relu(layer(nn.relu(x))))
    expected = nn.relu(x).reshape(2, -1)
    np.testing.assert_allclose(quick_jit(torso.apply)(params, obs), expected, rtol=1e-4, atol=1e-4)


def test_hadamax_has_the_size_of_two_branches():
    torso = HadamaxTorso(layers=Layers(layer_norm=True))
    blocks = ((8 * 8 * 4 + 1) * 32, (4 * 4 * 32 + 1) * 64, (3 * 3 * 64 + 1) * 64)
    norms = 2 * (32 + 64 + 64)
    # 84 / 4 / 2 = 10.5 pixels, padded to 11; a scale and a shift for each normalised channel.
    dense = (11 * 11 * 64 + 1) * 512
    assert size(shapes(torso)) == 2 * sum(blocks) + 2 * norms + dense + 2 * 512
    assert jax.eval_shape(torso.apply, shapes(torso), FRAMES).shape == (1, 512)


def test_hadamax_multiplies_its_branches():
    obs = jnp.asarray(RNG.normal(size=(2, 9, 8, 3)), jnp.float32)
    torso = HadamaxTorso(hidden_sizes=(5,), layers=Layers(layer_norm=True))
    params = random_params(torso, obs)
    weights = params["params"]

    def branch(x, index):
        y = convolved(x, weights[f"Conv_{index}"])
        y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-6)
        norm = weights[f"LayerNorm_{index}"]
        return nn.gelu(y * norm["scale"][None, None, None] + norm["bias"][None, None, None])

    x = obs
    for block, (window, stride) in enumerate(((4, 4), (2, 2), (3, 1))):
        x = branch(x, 2 * block) * branch(x, 2 * block + 1)
        x = nn.max_pool(x, (window, window), (stride, stride), "SAME")
    y = x.reshape(2, -1) @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"][None]
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-6)
    norm = weights["LayerNorm_6"]
    expected = nn.gelu(y * norm["scale"][None] + norm["bias"][None])
    np.testing.assert_allclose(quick_jit(torso.apply)(params, obs), expected, rtol=2e-3, atol=2e-3)


def test_the_network_of_btr_has_the_size_of_the_authors():
    config = Config(
        network="impala", torso_width=2, pool_size=6, spectral_norm=True, dense_size=512,
        loss="implicit_quantile", quantiles=8, dueling=True, noisy=True, frame_stack=4,
    )  # fmt: skip
    network = make_network(config, EnvSpec("test", (84, 84), np.dtype("uint8"), 4, None))
    params = jax.eval_shape(network.init, jax.random.key(0), FRAMES)
    features = 6 * 6 * 64
    vectors = 4 * 32 + 2 * 4 * 64
    convolutions = impala_size(2, 6, 0) + vectors
    embedding = (64 + 1) * features
    streams = 2 * (2 * (features + 1) * 512 + (512 + 1) * (1 + 4))
    assert size(params) == convolutions + embedding + streams
    # Their network for four actions, without the vectors of power iteration.
    assert size(params) - vectors == 5_264_554


@pytest.mark.parametrize("network", ["impala", "hadamax"])
def test_a_torso_that_does_not_accept_the_shape_is_rejected(network):
    with pytest.raises(ValueError, match=rf"network='{network}': must be 'mlp' for observations"):
        make_network(Config(network=network), EnvSpec("t", (5, 5, 2), np.dtype("bool"), 3, None))


def test_the_width_of_the_dense_layer_is_an_option():
    spec = EnvSpec("test", (8, 8, 2), np.dtype("float32"), 3, None)
    obs = jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32)
    for network, width in (("minatar", 128), ("impala", 256), ("hadamax", 512)):
        for config in (Config(network=network), Config(network=network, dense_size=24)):
            params = jax.eval_shape(make_network(config, spec).init, jax.random.key(0), obs)
            dense = params["params"]["torso"]["Dense_0"]["kernel"]
            assert dense.shape[1] == (config.dense_size or width)
    with pytest.raises(ValueError, match="dense_size=24: must be None unless network='minatar'"):
        Config(network="mlp", dense_size=24)
