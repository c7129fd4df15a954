"""Split a function so that its random numbers can be computed in advance, for many calls at once.

The name is that of loop-invariant code motion: operations that do not depend on the carry of a loop
are hoisted out of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import JaxprEqn, Literal

from jaxdqn.types import Array, PyTree

_DISABLE_JIT = "jax_disable_jit"


class Split(NamedTuple):
    """Two functions with ``after(before(first), *others) == function(first, *others)``."""

    before: Callable[[PyTree], list[Array]]
    """``before(first)``: intermediate values that depend only on the first argument"""
    after: Callable[..., PyTree]
    """``after(before(first), *others)``: value of the function"""


def split_first(
    function: Callable[..., PyTree], first: PyTree, *others: PyTree, most_bytes: int
) -> Split:
    """Split a function into the part that depends only on its first argument, and the rest.

    If the first argument contains a random key, the first part generates the random numbers.
    ``jax.vmap`` of the first part generates them for many calls at once. Threefry consists of many
    small operations on a CPU, and of many small kernels on a GPU, so this is much faster than
    generating them in each call.

    Both parts together perform the operations of the given function. Floating-point results may
    differ by rounding, because the parts are compiled separately. An operation belongs to the
    second part if it has side effects, calls Python, or depends on ``others``; a nested ``jit``
    counts as one operation. Operations on constants are performed in both parts.

    Under ``jax_disable_jit`` the first part returns its argument and the second part calls
    ``function``, whose code then sees values.

    Args:
        function: function of ``first`` and ``others``.
        first, others: shapes of the arguments of ``function``.
        most_bytes: maximum size of the result of the first part. If the result would be larger, the
            first part returns its argument, and the second part is the complete function.
    """
    if getattr(jax.config, _DISABLE_JIT):
        return _not_split(function, first)
    closed, shape = jax.make_jaxpr(function, return_shape=True)(first, *others)
    jaxpr, results = closed.jaxpr, jax.tree.structure(shape)
    inputs = jaxpr.invars[: len(jax.tree.leaves(first))]
    constant, early, late = _divide(jaxpr.eqns, inputs, jaxpr.invars[len(inputs) :])
    made = {variable for eqn in early for variable in eqn.outvars}.union(inputs)
    read = [variable for eqn in late for variable in eqn.invars] + list(jaxpr.outvars)
    # Without duplicates, in the order in which they are read.
    needed = list(dict.fromkeys(one for one in read if not _is_literal(one) and one in made))
    if sum(_bytes(variable) for variable in needed) > most_bytes:
        needed, early, late = list(inputs), [], [*early, *late]
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True))

    def before(first: PyTree) -> list[Array]:
        values = {**known, **dict(zip(inputs, jax.tree.leaves(first), strict=True))}
        _evaluate([*constant, *early], values)
        return [values[variable] for variable in needed]

    def after(drawn: list[Array], *others: PyTree) -> PyTree:
        values = {**known, **dict(zip(needed, drawn, strict=True))}
        values |= zip(jaxpr.invars[len(inputs) :], jax.tree.leaves(others), strict=True)
        _evaluate([*constant, *late], values)
        return jax.tree.unflatten(results, [_value(values, one) for one in jaxpr.outvars])

    return Split(before, after)


def _not_split(function: Callable[..., PyTree], first: PyTree) -> Split:
    tree = jax.tree.structure(first)
    return Split(
        jax.tree.leaves,
        lambda drawn, *others: function(jax.tree.unflatten(tree, drawn), *others),
    )


def _divide(
    eqns: Sequence[JaxprEqn], inputs: Sequence[Any], others: Sequence[Any]
) -> tuple[list[JaxprEqn], list[JaxprEqn], list[JaxprEqn]]:
    """Group operations: those on constants, those that depend only on ``inputs``, and the rest."""
    constant: list[JaxprEqn] = []
    early: list[JaxprEqn] = []
    late: list[JaxprEqn] = []
    of_inputs, of_others = set(inputs), set(others)
    for eqn in eqns:
        read = [variable for variable in eqn.invars if not _is_literal(variable)]
        calls_python = "callback" in eqn.primitive.name
        if eqn.effects or calls_python or any(variable in of_others for variable in read):
            late.append(eqn)
            of_others.update(eqn.outvars)
        elif any(variable in of_inputs for variable in read):
            early.append(eqn)
            of_inputs.update(eqn.outvars)
        else:
            constant.append(eqn)
    return constant, early, late


def _evaluate(eqns: Sequence[JaxprEqn], values: dict[Any, Any]) -> None:
    """Execute the operations, and add their results to ``values``."""
    for eqn in eqns:
        arguments = [_value(values, variable) for variable in eqn.invars]
        with eqn.ctx.manager:  # settings under which the operation was traced
            options = eqn.primitive.get_bind_params(eqn.params)
            result = eqn.primitive.bind(*arguments, **options)
        made = result if eqn.primitive.multiple_results else [result]
        values |= zip(eqn.outvars, made, strict=True)


def _value(values: dict[Any, Any], variable: Any) -> Any:
    return variable.val if _is_literal(variable) else values[variable]


def _is_literal(variable: Any) -> bool:
    return isinstance(variable, Literal)


def _bytes(variable: Any) -> int:
    # An extended dtype may have no item size. The largest key has 16 bytes.
    return math.prod(variable.aval.shape) * getattr(variable.aval.dtype, "itemsize", 16)
