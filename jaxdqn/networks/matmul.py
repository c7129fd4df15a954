"""Matrix product of a dense layer, with a faster gradient for narrow layers on CPU."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxdqn.types import Array

NARROW = 8
"""Maximum number of inputs or outputs of a narrow layer. Examples are the observations and actions
of classic control, and the actions of MinAtar."""


def product(x: Array, kernel: Array) -> Array:
    """Return ``x @ kernel``, ``[..., H]`` for ``[..., F]`` and ``[F, H]``.

    On CPU a narrow kernel has a custom gradient. XLA computes the gradient of a kernel as
    ``x^T dy``, which contracts the first axis of both arguments. The fast matrix product of XLA:CPU
    does not support such a contraction: the gradient takes 56 us for 256 rows, 128 inputs and 2
    actions, and 1 us as ``dy^T x`` with an explicit transpose of ``dy``. The custom gradient makes
    an iteration of the CartPole preset 1.21 times as fast. For wide layers the transpose costs what
    the product saves. The barriers keep XLA from folding the transposes back into the product.

    Forward mode (``jax.jvp``) is supported. The platform is the one for which the program is
    compiled or exported, not the one on which it is traced.
    """
    return _narrow_product(x, kernel) if min(kernel.shape) <= NARROW else x @ kernel


def dot_general(
    x: Array,
    kernel: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Compute ``jax.lax.dot_general`` for a flax layer, plain matrix products by ``product``."""
    plain = (((x.ndim - 1,), (0,)), ((), ()))
    if dimension_numbers == plain and (precision, preferred_element_type) == (None, None):
        return product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimension_numbers, precision, preferred_element_type)


@jax.custom_jvp
def _narrow_product(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _derivative(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = x @ kernel
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(dx @ kernel)
    if not isinstance(dkernel, SymbolicZero):
        parts.append(
            jax.lax.platform_dependent(x, dkernel, cpu=_linear_in_kernel, default=jnp.matmul)
        )
    return y, sum(parts[1:], parts[0]) if parts else SymbolicZero(jax.typeof(y).to_tangent_aval())


_narrow_product.defjvp(_derivative, symbolic_zeros=True)


def _linear_in_kernel(x: Array, kernel: Array) -> Array:
    """Return ``x @ kernel`` in a form whose transpose in the kernel is a fast product.

    Reverse mode executes only the transpose: ``(dy^T x)^T`` if there are at most as many outputs as
    inputs, else ``x^T dy``. Each has an explicit transpose of the smaller operand.
    """
    inputs, outputs = kernel.shape
    flat = x.reshape(math.prod(x.shape[:-1]), inputs)
    materialise = jax.lax.optimization_barrier
    if outputs <= inputs:
        transposed = jax.lax.dot_general(materialise(kernel.T), flat, (((1,), (1,)), ((), ())))
        y = materialise(transposed).T
    else:
        y = jax.lax.dot_general(materialise(flat.T), kernel, (((0,), (0,)), ((), ())))
    return y.reshape(*x.shape[:-1], outputs)
