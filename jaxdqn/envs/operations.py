"""Estimate of the operations in a traced function, the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxdqn.types import PyTree

_LOOP = 1_000
"""Operations of a loop iteration in addition to the loop body, and of a random call. On CPU both
compile to a loop that is not fused with other operations."""
_UNKNOWN_LENGTH = 100
"""Assumed number of iterations of a ``while`` loop, which the traced program does not contain."""
_RANDOM_WORD = 64
"""Operations for 32 random bits of threefry (Salmon et al. 2011), 20 rounds for two words."""
_COMPARISON = 32
"""Operations per comparison in a sort, which is neither vectorised nor fused."""
_INDEXED = 8
"""Operations per element that a gather or a scatter moves."""
_RANDOM_KEYS = ("random_split", "random_fold_in", "random_seed")
_FREE = frozenset(
    {
        "broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "iota", "random_unwrap",
        "random_wrap", "reshape", "slice", "squeeze", "stop_gradient", "transpose",
    }
)  # fmt: skip
"""Primitives that only move or create elements; XLA fuses them with the operations around them."""


def count_operations(function: Callable[..., Any], *arguments: Any) -> tuple[int, PyTree]:
    """Trace a function and estimate its operations.

    A multiply-add of a matrix product or a convolution is one operation. Other primitives have one
    per element that they compute, or that they reduce; random bits, sorts and indexing have more.
    All branches of a conditional count, because under ``vmap`` all of them run. The count depends
    only on the traced program, and is meant to tell orders of magnitude apart.

    Args:
      function: function to trace, of one environment.
      arguments: arrays, or their shapes.

    Returns:
      The number of operations, and the shapes of the result.
    """
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return round(_of_jaxpr(jaxpr)), shapes


def _of_jaxpr(jaxpr: Any) -> float:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> float:
    """Return the operations of an equation, including those of the programs that it calls."""
    name, params = equation.primitive.name, equation.params
    if name in _FREE:
        return 0
    if name == "scan":
        return params["length"] * (_LOOP + _of_jaxpr(params["jaxpr"]))
    if name == "while":
        body = _of_jaxpr(params["cond_jaxpr"]) + _of_jaxpr(params["body_jaxpr"])
        return _UNKNOWN_LENGTH * (_LOOP + body)
    if name == "sort":
        operand = equation.invars[0].aval
        length = operand.shape[params["dimension"]]
        return _COMPARISON * operand.size * math.log2(max(2, length))
    if name.startswith("scatter"):
        return _INDEXED * equation.invars[2].aval.size
    if name.startswith(("reduce", "arg", "cum")):
        return equation.invars[0].aval.size
    # Empty for a primitive that calls no other program.
    called = list(_called(params))
    return sum(map(_of_jaxpr, called)) if called else _of_primitive(equation)


def _of_primitive(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    outputs = sum(_size(variable) for variable in equation.outvars)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return outputs * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return outputs * kernel.size / features
    if name == "gather":
        return _INDEXED * outputs
    if name == "random_bits":
        return _LOOP + _RANDOM_WORD * outputs * max(1, params["bit_width"] // 32)
    if name in _RANDOM_KEYS:
        return _LOOP + _RANDOM_WORD * 2 * outputs  # a key has two words
    if name == "threefry2x32":
        return _LOOP + _RANDOM_WORD * outputs
    return outputs


def _size(variable: Any) -> int:
    return math.prod(getattr(variable.aval, "shape", ()))


def _called(params: dict[str, Any]) -> Iterator[Any]:
    """Yield the jaxprs among the parameters of an equation."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "eqns"):
                yield each
