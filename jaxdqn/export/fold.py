"""Simplification of a traced function: fold constants and select the branches for CPU.

Converters then do not have to support every primitive that builds constants. Branches that depend
on the platform are resolved here, because no converter supports them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Literal

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Primitives that call a function, and the name of the parameter that holds the function."""


def folded(function: Callable[..., Any], *shapes: Any) -> Callable[..., Any]:
    """Trace a function and return it with calls inlined and constants folded.

    Branches that depend on the platform are resolved for CPU.

    Args:
        function: pure function.
        shapes: argument shapes, pytrees of ``jax.ShapeDtypeStruct``; arguments are not folded.

    Returns:
        A function of arrays of these shapes.
    """
    closed, output = jax.make_jaxpr(function, return_shape=True)(*shapes)

    def simplified(*arguments: Any) -> Any:
        inputs = [(leaf, False) for leaf in jax.tree.leaves(arguments)]
        results = _evaluate(closed.jaxpr, closed.consts, inputs)
        return jax.tree.unflatten(jax.tree.structure(output), [value for value, _ in results])

    return simplified


_Value = tuple[Any, bool]
"""A value, and True if it is constant."""


def _evaluate(jaxpr: Any, consts: Any, inputs: list[_Value]) -> list[_Value]:
    """Evaluate a jaxpr; see "Writing custom Jaxpr interpreters" in the documentation of JAX."""
    values: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    values |= {var: (const, True) for var, const in zip(jaxpr.constvars, consts, strict=True)}

    def read(atom: Any) -> _Value:
        return (atom.val, True) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        found = [read(atom) for atom in equation.invars]
        values |= zip(equation.outvars, _apply(equation, found), strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, inputs: list[_Value]) -> list[_Value]:
    """Apply one equation."""
    primitive, params = equation.primitive, equation.params
    if primitive.name in _CALLS:
        called = params[_CALLS[primitive.name]]
        return _evaluate(called.jaxpr, called.consts, inputs)
    if primitive.name == "cond" and inputs[0][1]:
        branch = params["branches"][int(inputs[0][0])]
        return _evaluate(branch.jaxpr, branch.consts, inputs[1:])
    # A constant of a symbolic shape, such as zeros for the batch, cannot be computed.
    sizes = [size for var in equation.outvars for size in getattr(var.aval, "shape", ())]
    constant = all(known for _, known in inputs) and all(isinstance(size, int) for size in sizes)
    arguments = [value for value, _ in inputs]
    bound = primitive.get_bind_params(params)
    subfuns, bound = bound if isinstance(bound, tuple) else ((), bound)
    if constant:
        device = jax.local_devices(backend="cpu")[0]
        with jax.ensure_compile_time_eval(), jax.default_device(device):
            results = primitive.bind(*subfuns, *arguments, **bound)
    else:
        results = primitive.bind(*subfuns, *arguments, **bound)
    several = results if primitive.multiple_results else [results]
    return [(result, constant) for result in several]
