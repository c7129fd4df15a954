"""The convolution: parameters and values of flax, in each implementation."""

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn import backend_choices
from jaxdqn.networks import Conv

# Features, kernel, stride, input shape: those of MinAtar and Nature at a smaller size, and a stride
# that does not divide the input.
SHAPES = [
    (16, 3, 1, (3, 10, 10, 4)),
    (8, 8, 4, (2, 20, 24, 2)),
    (8, 4, 2, (2, 9, 11, 5)),
    (4, 3, 2, (2, 8, 9, 3)),
    (5, 3, 1, (1, 3, 3, 1)),
]


def _inputs(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def _random_params(init, *inputs):
    """Return random parameters; compiling an initialiser would take seconds."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


def test_conv_has_the_parameter_names_and_initial_values_of_flax():
    x = _inputs((1, 5, 5, 2))
    ours = Conv(3, 3).init(jax.random.key(1), x)
    peer = nn.Conv(3, (3, 3)).init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours, peer)


@pytest.mark.parametrize(("features", "kernel", "stride", "shape"), SHAPES)
def test_conv_has_the_values_and_gradients_of_flax_in_each_implementation(
    features, kernel, stride, shape
):
    x = _inputs(shape)
    peer = nn.Conv(features, (kernel, kernel), (stride, stride), padding="VALID")
    params = _random_params(peer.init, x)

    def outcome(module):
        def loss(params, x):
            y = module.apply(params, x)
            return jnp.mean(jnp.sin(y)), y

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)

    expected = outcome(peer)
    for implementation in ("lax", "patches"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            outcome(Conv(features, kernel, stride, implementation)),
            expected,
        )


def test_patches_agree_with_a_loop():
    x = np.random.default_rng(2).normal(size=(2, 7, 6, 3)).astype(np.float32)
    conv = Conv(4, 3, 2, "patches")
    params = _random_params(conv.init, x)
    kernel = np.asarray(params["params"]["kernel"])
    expected = np.broadcast_to(params["params"]["bias"], (2, 3, 2, 4)).copy()
    for row in range(3):
        for column in range(2):
            window = x[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected[:, row, column] += np.einsum("bhwc,hwco->bo", window, kernel)
    np.testing.assert_allclose(jax.jit(conv.apply)(params, x), expected, atol=1e-5)


def test_a_named_implementation_is_used_on_every_platform():
    x = _inputs((1, 5, 5, 2))
    params = jax.eval_shape(Conv(3, 3).init, jax.random.key(0), x)

    def primitives(implementation):
        return str(jax.make_jaxpr(Conv(3, 3, implementation=implementation).apply)(params, x))

    assert "conv_general_dilated" in primitives("lax")
    assert "conv_general_dilated" not in primitives("patches")


@pytest.mark.parametrize(("platform", "lax"), [("cpu", False), ("cuda", True)])
def test_a_program_holds_the_implementation_of_the_platform_that_it_is_for(platform, lax):
    x = _inputs((2, 6, 6, 3))
    module = Conv(4, 3)
    params = _random_params(module.init, x)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(module.apply(params, x))))
    text = jax.export.export(gradient, platforms=[platform])(params).mlir_module()
    assert ("stablehlo.convolution" in text) is lax


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("form", ["lax", "patches"])
def test_the_form_of_each_platform_is_a_choice_by_backend(platform, form, monkeypatch):
    other = {"lax": "patches", "patches": "lax"}[form]
    name = {"cuda": "gpu"}.get(platform, platform)
    chosen = {
        each: backend_choices.choices(each)._replace(convolution=form if each == name else other)
        for each in ("cpu", "gpu", "tpu")
    }
    monkeypatch.setattr(backend_choices, "_CHOICES", chosen)
    x = _inputs((2, 6, 6, 3))
    module = Conv(4, 3)
    params = _random_params(module.init, x)
    text = jax.export.export(jax.jit(module.apply), platforms=[platform])(params, x).mlir_module()
    assert ("stablehlo.convolution" in text) is (form == "lax")
