"""Products with narrow kernels: the same values and gradients as ``x @ kernel``."""

import jax
import jax.export
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


def normal_arrays(*shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(function, x, kernel):
    y, pullback = jax.vjp(function, x, kernel)
    return y, *pullback(jnp.cos(y))


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_the_plain_product(shapes):
    x, kernel = normal_arrays(*shapes)
    ours, plain = (
        jax.jit(value_and_gradients, static_argnums=0)(f, x, kernel) for f in (product, matmul)
    )
    for mine, theirs in zip(ours, plain, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernels", [None, 0], ids=["one kernel", "separate kernels"])
def test_vmapped_learners_have_the_gradients_of_separate_ones(kernels):
    x, kernel = normal_arrays((3, 32, 24), (24, 2) if kernels is None else (3, 24, 2))
    each = jax.vmap(lambda x, kernel: value_and_gradients(product, x, kernel), in_axes=(0, kernels))
    together = jax.jit(each)(x, kernel)
    for i in range(3):
        separate = value_and_gradients(matmul, x[i], kernel if kernels is None else kernel[i])
        for mine, theirs in zip(together, separate, strict=True):
            np.testing.assert_allclose(mine[i], theirs, rtol=1e-5, atol=1e-5)


def test_the_gradient_has_the_dtype_of_the_kernel():
    x, kernel = normal_arrays((32, 24), (24, 2), dtype=jnp.bfloat16)
    y, dx, dkernel = value_and_gradients(product, x, kernel)
    assert y.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_forward_derivatives_are_those_of_the_plain_product(shapes):
    x, kernel, dx, dkernel = normal_arrays(*shapes, *shapes)
    for tangents in ((dx, dkernel), (jnp.zeros_like(dx), dkernel)):
        ours, plain = (jax.jvp(f, (x, kernel), tangents) for f in (product, matmul))
        for mine, theirs in zip(ours, plain, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_hessian_by_forward_over_reverse_mode_is_that_of_the_plain_product():
    x, kernel = normal_arrays((6, 5), (5, 2))

    def hessian(f):
        return jax.jacfwd(jax.grad(lambda kernel: jnp.sum(jnp.sin(f(x, kernel)))))(kernel)

    np.testing.assert_allclose(hessian(product), hessian(matmul), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "outputs", "custom"),
    [(64, NARROW, True), (NARROW, 64, True), (64, NARROW + 1, False), (NARROW + 1, 64, False)],
)
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_only_narrow_kernels_in_programs_for_cpu_have_a_custom_gradient(
    platform, inputs, outputs, custom
):
    x, kernel = normal_arrays((32, inputs), (inputs, outputs))
    function = jax.jit(lambda x, kernel: value_and_gradients(product, x, kernel))
    text = jax.export.export(function, platforms=[platform])(x, kernel).mlir_module()
    assert ("optimization_barrier" in text) is (custom and platform == "cpu")


def test_other_products_are_unchanged():
    x, kernel = normal_arrays((32, 24), (2, 24))
    dimensions = (((1,), (1,)), ((), ()))
    np.testing.assert_array_equal(
        dot_general(x, kernel, dimensions), jax.lax.dot_general(x, kernel, dimensions)
    )


def matmul(x, kernel):
    return x @ kernel
