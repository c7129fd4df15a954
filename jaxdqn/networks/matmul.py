"""The matrix product of a dense layer, with a faster gradient for narrow layers on CPU."""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxdqn.types import Array

NARROW = 8
"""A layer is narrow if its inputs or its outputs number at most this: the observations and
actions of classic control, and the actions of MinAtar."""


def product(x: Array, kernel: Array) -> Array:
    """Return ``x @ kernel``, ``[..., H]`` for ``[..., F]`` and ``[F, H]``.

    On CPU a narrow kernel has a custom gradient. XLA computes the gradient of a kernel as
    ``x^T dy``, which contracts the first axis of both arguments. Its fast matrix product does
    not support that: it takes 56 us for 256 rows, 128 inputs and 2 actions. ``dy^T x`` with an
    explicit transpose of ``dy`` takes 1 us. An iteration of the CartPole preset is 1.21 times
    as fast with it. For wide layers the transpose costs what the product saves. The barriers
    keep XLA from folding the transposes back into the product.

    The custom gradient has no forward-mode derivative (``jax.jvp``).
    """
    if min(kernel.shape) <= NARROW and jax.default_backend() == "cpu":
        return _narrow_product(x, kernel)
    return x @ kernel


def dot_general(
    x: Array,
    kernel: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Replace ``jax.lax.dot_general`` in a flax layer; use ``product`` for plain products."""
    plain = (((x.ndim - 1,), (0,)), ((), ()))
    if dimension_numbers == plain and (precision, preferred_element_type) == (None, None):
        return product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision, preferred_element_type)


@jax.custom_vjp
def _narrow_product(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    inputs, outputs = kernel.shape
    rows = math.prod(x.shape[:-1])
    x, flat = x.reshape(rows, inputs), dy.reshape(rows, outputs)
    materialise = jax.lax.optimization_barrier
    # Transpose the smaller of the two.
    if outputs <= inputs:
        gradient = materialise(materialise(flat.T) @ x).T
    else:
        gradient = materialise(x.T) @ flat
    return dy @ kernel.T, gradient


_narrow_product.defvjp(_forward, _backward)
