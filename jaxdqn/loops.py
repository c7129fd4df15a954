"""Loops of the training program, with choices that depend on the backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.backend_choices import choices
from jaxdqn.types import Array, PyTree

PACK_LIMIT = 65_536
"""Maximum number of elements of a carry leaf that is packed."""


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: PyTree,
    xs: PyTree = None,
    length: int | None = None,
    *,
    unroll: bool = False,
    pack: bool = True,
) -> tuple[Any, Any]:
    """Scan as ``jax.lax.scan``, with packing and unrolling chosen for the backend.

    On a GPU each leaf of a carry needs separate kernels: one to compute it, and often one to copy
    it. The small leaves are therefore packed into one vector, which a single kernel computes. Only
    bools, random keys and 32-bit numbers are packed, and no float arrays of two or more axes. On a
    CPU, which launches no kernels, packing would only cost time.

    Args:
      step: ``step(carry, x) -> (carry, output)``
      carry: pytree of arrays.
      xs: inputs of the steps, leaves [length, ...]; None for steps without input.
      length: number of steps; None takes it from ``xs``.
      unroll: True to unroll the loop on backends where this is faster. Compilation takes
        proportionally longer.
      pack: False if leaves are sharded over an axis that the compiler handles, because packing
        would require an all-gather.
    """
    steps = choices().unroll if unroll else 1
    if not pack or not choices().pack_carries or not jax.tree.leaves(carry):
        return jax.lax.scan(step, carry, xs, length, unroll=steps)
    layout = _layout(carry)

    def packed_step(packed: PyTree, x: Any) -> tuple[PyTree, Any]:
        carry, output = step(_unpack(layout, packed), x)
        _check_types(layout, carry)
        return _pack(layout, carry), output

    packed, outputs = jax.lax.scan(packed_step, _pack(layout, carry), xs, length, unroll=steps)
    return _unpack(layout, packed), outputs


class _Layout(NamedTuple):
    """Structure of a pytree whose small leaves are packed."""

    structure: Any
    leaves: list[Any]
    """Shape and dtype of each leaf."""


def _layout(tree: PyTree) -> _Layout:
    leaves, structure = jax.tree.flatten(tree)
    return _Layout(structure, [jax.typeof(leaf) for leaf in leaves])


def _check_types(layout: _Layout, carry: PyTree) -> None:
    """Raise a TypeError if a step changes a leaf's shape or dtype, as ``jax.lax.scan`` does."""
    for before, leaf in zip(layout.leaves, layout.structure.flatten_up_to(carry), strict=True):
        if (before.shape, before.dtype) != (jnp.shape(leaf), jnp.result_type(leaf)):
            after = f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
            raise TypeError(
                f"step: must return a carry of the same types, not {after} for "
                f"{before.dtype}{list(before.shape)}"
            )


def _is_packed(leaf: Any) -> bool:
    # Keep operands of matrix products as separate arrays, because a slice would be copied.
    matrix = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim >= 2
    return leaf.size <= PACK_LIMIT and not matrix and _words(leaf) is not None


def _words(leaf: Any) -> int | None:
    """Return the number of 32-bit words of a leaf, or None if its dtype cannot be packed."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf.size * math.prod(jax.eval_shape(jax.random.key_data, leaf).shape[leaf.ndim :])
    return leaf.size if leaf.dtype == jnp.bool_ or leaf.dtype.itemsize == 4 else None


def _pack(layout: _Layout, tree: PyTree) -> PyTree:
    """Return the vector of the packed leaves, and a list of the others."""
    leaves = layout.structure.flatten_up_to(tree)
    small = [_to_words(leaf) for leaf in leaves if _is_packed(leaf)]
    large = [leaf for leaf in leaves if not _is_packed(leaf)]
    return jnp.concatenate(small) if small else (), large


def _unpack(layout: _Layout, packed: PyTree) -> PyTree:
    """Invert ``_pack``."""
    vector, large = packed
    sizes = [_words(leaf) or 0 for leaf in layout.leaves if _is_packed(leaf)]
    starts, others = iter((0, *accumulate(sizes))), iter(large)
    leaves = [
        _from_words(vector, next(starts), leaf) if _is_packed(leaf) else next(others)
        for leaf in layout.leaves
    ]
    return jax.tree.unflatten(layout.structure, leaves)


def _to_words(leaf: Array) -> Array:
    """Return a leaf as uint32 [words]."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()


def _from_words(vector: Array, start: int, like: Any) -> Array:
    """Invert ``_to_words`` for the leaf that starts at word ``start`` of the vector."""
    words = jax.lax.slice(vector, (start,), (start + (_words(like) or 0),))
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        shape = jax.eval_shape(jax.random.key_data, like).shape
        return jax.random.wrap_key_data(words.reshape(shape), impl=like.dtype)
    words = words.reshape(like.shape)
    if like.dtype == jnp.bool_:
        return words.astype(jnp.bool_)
    return jax.lax.bitcast_convert_type(words, like.dtype)
