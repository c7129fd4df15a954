"""Rewrite of scatters to a single index as selections, for accelerators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxdqn.types import Array

_LARGEST = 4_096
"""Maximum number of elements of a rewritten array. A selection reads and writes the whole array, so
larger arrays keep their scatter."""


def select_at_indices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Transform a function so that ``array.at[index].set(value)`` becomes a selection.

    On a GPU a scatter needs a separate kernel and often a copy of the array. A selection compares
    all indices with the given index, and is fused with the surrounding operations. Grid games write
    about a dozen single cells per step. The results are equal. Scatters to arrays of more than
    4,096 elements, and those inside loops and conditionals, are not changed.

    Args:
      function: function of one environment, before any vmap. It is traced at each call.
    """

    def with_selections(*arguments: Any) -> Any:
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        results = _evaluate(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return with_selections


def _evaluate(jaxpr: Any, consts: list[Any], arguments: list[Any]) -> list[Any]:
    """Evaluate a jaxpr, replacing scatters by selections."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def value_of(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs = [value_of(variable) for variable in equation.invars]
        outputs = _apply(equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [value_of(variable) for variable in jaxpr.outvars]


def _apply(equation: Any, inputs: list[Any]) -> list[Any]:
    primitive, params = equation.primitive, equation.params
    if primitive.name in ("jit", "pjit"):
        return _evaluate(params["jaxpr"].jaxpr, params["jaxpr"].consts, inputs)
    if primitive.name == "scatter" and _writes_at_one_index(equation):
        operand, indices, update = inputs
        return [_select(operand, indices, update, params)]
    outputs = primitive.bind(*inputs, **primitive.get_bind_params(params))
    return list(outputs) if primitive.multiple_results else [outputs]


def _writes_at_one_index(equation: Any) -> bool:
    """Return True if a scatter sets one index of some axes, and the other axes completely."""
    operand, indices, _ = (variable.aval for variable in equation.invars)
    numbers = equation.params["dimension_numbers"]
    return (
        operand.size <= _LARGEST
        and indices.ndim == 1
        and not numbers.operand_batching_dims
        and set(numbers.inserted_window_dims) == set(numbers.scatter_dims_to_operand_dims)
    )


def _select(operand: Array, indices: Array, update: Array, params: dict[str, Any]) -> Array:
    """Select the update where all indices equal the scatter indices, else the operand."""
    axes = params["dimension_numbers"].scatter_dims_to_operand_dims
    chosen = jnp.ones((1,) * operand.ndim, jnp.bool_)
    for place, axis in enumerate(axes):
        size, index = operand.shape[axis], indices[place]
        if params["mode"] == jax.lax.GatherScatterMode.CLIP:
            index = jnp.clip(index, 0, size - 1)
        # An index out of bounds selects nothing; a scatter also drops such an update.
        shape = tuple(size if other == axis else 1 for other in range(operand.ndim))
        positions = jax.lax.iota(indices.dtype, size).reshape(shape)
        chosen = chosen & (positions == index.reshape((1,) * operand.ndim))
    whole = jnp.broadcast_to(jnp.expand_dims(update, axes), operand.shape)
    return jnp.where(jnp.broadcast_to(chosen, operand.shape), whole, operand)
