"""Products with narrow kernels: the same values and gradients as ``x @ kernel``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.networks.matmul import NARROW, dot_general, product

SHAPES = {
    "narrow out": ((32, 24), (24, 2)),
    "narrow in": ((32, 4), (4, 24)),
    "narrow both ways": ((32, 3), (3, 5)),
    "one output": ((32, 24), (24, 1)),
    "three axes": ((5, 7, 24), (24, 3)),
    "wide": ((32, 24), (24, 16)),
}


def of_normals(*shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def pulled_back(function, x, kernel):
    y, pull_back = jax.vjp(function, x, kernel)
    return y, *pull_back(jnp.cos(y))


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_the_plain_product(shapes):
    x, kernel = of_normals(*shapes)
    ours, plain = (jax.jit(pulled_back, static_argnums=0)(f, x, kernel) for f in (product, matmul))
    for mine, theirs in zip(ours, plain, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernels", [None, 0], ids=["one kernel", "a kernel each"])
def test_learners_in_one_program_have_the_gradients_of_each(kernels):
    x, kernel = of_normals((3, 32, 24), (24, 2) if kernels is None else (3, 24, 2))
    each = jax.vmap(lambda x, kernel: pulled_back(product, x, kernel), in_axes=(0, kernels))
    together = jax.jit(each)(x, kernel)
    for i in range(3):
        alone = pulled_back(matmul, x[i], kernel if kernels is None else kernel[i])
        for mine, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(mine[i], theirs, rtol=1e-5, atol=1e-5)


def test_the_gradient_has_the_kernels_type():
    x, kernel = of_normals((32, 24), (24, 2), dtype=jnp.bfloat16)
    y, dx, dkernel = pulled_back(product, x, kernel)
    assert y.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a gradient of CPU's own")
@pytest.mark.parametrize(
    ("inputs", "outputs", "own"),
    [(64, NARROW, True), (NARROW, 64, True), (64, NARROW + 1, False), (NARROW + 1, 64, False)],
)
def test_only_narrow_kernels_have_a_gradient_of_their_own(inputs, outputs, own):
    x, kernel = of_normals((32, inputs), (inputs, outputs))
    text = str(jax.make_jaxpr(lambda x, kernel: pulled_back(product, x, kernel))(x, kernel))
    assert ("optimization_barrier" in text) is own


def test_other_products_are_left_alone():
    x, kernel = of_normals((32, 24), (2, 24))
    dimensions = (((1,), (1,)), ((), ()))
    np.testing.assert_array_equal(
        dot_general(x, kernel, dimensions), jax.lax.dot_general(x, kernel, dimensions)
    )


def matmul(x, kernel):
    return x @ kernel
