"""Observations of the suites as one array that a network can learn from.

- An array keeps its shape. bool and uint8 keep their dtype, other numbers become float32.
- An integer that a suite bounds to at most 32 values (``MOST_VALUES``) becomes one-hot, bool, on a
  new last axis; one with wider bounds is scaled to 0..1. The categories of a cell of a grid become
  one-hot one beside the other: ``[H, W, C]`` to ``[H, W, planes]``.
- A structure (dict, named tuple, dataclass) is flattened to one vector of its raveled parts, in the
  order of ``jax.tree.leaves``: fields as they are declared, keys of a dict sorted. It is float32,
  or bool if every part is. A structure of one part is that part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.types import Array

MOST_VALUES = 32
"""Most values of an integer that becomes one-hot."""


class Bounds(NamedTuple):
    """Least and greatest value of an integer."""

    low: int
    high: int


def standard(obs: Array) -> Array:
    """Return an observation as it is if it is bool or uint8, and as float32 otherwise."""
    obs = jnp.asarray(obs)
    return obs if obs.dtype in (jnp.bool_, jnp.uint8) else obs.astype(jnp.float32)


def one_hot(values: Array, bounds: Bounds) -> Array:
    """Return ``values`` [...] as one-hot [..., high - low + 1]; outside the bounds all False."""
    classes = jnp.arange(bounds.low, bounds.high + 1, dtype=jnp.int32)
    classes = classes.reshape((1,) * values.ndim + classes.shape)
    return jnp.expand_dims(values.astype(jnp.int32), -1) == classes


def bounded(values: Array, bounds: Bounds | None) -> Array:
    """Return integers within bounds, [...], as one-hot or scaled; anything else as ``standard``."""
    values = jnp.asarray(values)  # a suite may return Python numbers
    if bounds is None or not jnp.issubdtype(values.dtype, jnp.integer):
        return standard(values)
    if bounds.high - bounds.low < MOST_VALUES:
        return one_hot(values, bounds)
    return (values.astype(jnp.float32) - bounds.low) / float(bounds.high - bounds.low)


def planes(grid: Array, sizes: Sequence[int]) -> Array:
    """Return the categories of the cells of a grid as planes, one for each category.

    Args:
        grid: ``[H, W, C]`` integers, of which channel c counts from 0 to ``sizes[c]`` - 1.
        sizes: C numbers of categories.

    Returns:
        ``[H, W, sum(sizes)]`` bool
    """
    channels = [one_hot(grid[..., c], Bounds(0, size - 1)) for c, size in enumerate(sizes)]
    return jnp.concatenate(channels, axis=-1)


def parts(observation: Any, without: Sequence[str] = ()) -> dict[str, Array]:
    """Return the arrays of an observation by name, such as ``items.x_len``, in their order.

    Args:
        observation: any pytree.
        without: names of fields that are left out.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(observation)
    named = {".".join(map(_name, path)): leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if name not in without}


def flatten(
    observation: Any, bounds: Mapping[str, Bounds] | None = None, without: Sequence[str] = ()
) -> Array:
    """Return a structured observation as one array.

    Args:
        observation: any pytree.
        bounds: those of its integers, by the names of ``parts``; others have none.
        without: names of fields that are left out.
    """
    known = bounds or {}
    values = [bounded(leaf, known.get(name)) for name, leaf in parts(observation, without).items()]
    if len(values) == 1:
        return values[0]
    dtype = jnp.bool_ if all(value.dtype == jnp.bool_ for value in values) else jnp.float32
    return jnp.concatenate([value.astype(dtype).reshape(-1) for value in values])


def _name(entry: Any) -> str:
    """Return the name of one entry of a path of ``jax.tree_util``."""
    for attribute in ("name", "key", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
