"""Products with a layer's kernel, and their gradients."""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxdqn.types import Array

NARROW = 8
"""Inputs or outputs up to which a layer counts as narrow: observations and actions of classic
control, the actions of MinAtar."""


def product(x: Array, kernel: Array) -> Array:
    """Return ``x @ kernel``, ``[..., H]`` for ``[..., F]`` and ``[F, H]``.

    On CPU a narrow kernel has a gradient of its own. XLA computes that of a kernel as
    ``x^T dy``, which sums over the first axis of both, and its fast product takes no such
    thing: 56 us for 256 rows, 128 inputs and 2 actions, where ``dy^T x``, with ``dy^T``
    written out, takes 1. An iteration of the CartPole preset is 1.21 times as fast for it.
    Of wide layers what there is to transpose takes what is won. The barriers keep XLA from
    folding the transpositions back into the product. There is no forward-mode derivative
    (``jax.jvp``) of it.
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
    """Do what a flax layer asks of ``jax.lax.dot_general``, by ``product`` where that is it."""
    plain = (((x.ndim - 1,), (0,)), ((), ()))
    if dimension_numbers == plain and (precision, preferred_element_type) == (None, None):
        return product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision, preferred_element_type)


@jax.custom_vjp
def _narrow_product(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    inputs, outputs = kernel.shape
    rows = math.prod(x.shape[:-1])
    x, flat = x.reshape(rows, inputs), dy.reshape(rows, outputs)
    written_out = jax.lax.optimization_barrier
    if outputs <= inputs:
        gradient = written_out(written_out(flat.T) @ x).T
    else:
        gradient = written_out(x.T) @ flat
    return dy @ kernel.T, gradient


_narrow_product.defvjp(_forward, _backward)
