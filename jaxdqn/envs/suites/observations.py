"""Conversion of the suites' observations to a single array for a network.

- An array keeps its shape. bool and uint8 keep their dtype; other dtypes become float32.
- An integer with known bounds becomes one-hot bool on a new last axis if it has at most 32 values
  (``MOST_VALUES``); otherwise it is scaled to 0..1. The categories of a grid cell become
  concatenated one-hot vectors: ``[H, W, C]`` becomes ``[H, W, planes]``.
- A structure (dict, named tuple, dataclass) is flattened to one vector of its raveled parts, in the
  order of ``jax.tree.leaves``: fields in order of declaration, keys of a dict sorted. The vector is
  bool if every part is bool, else float32. A structure with a single part becomes that part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.types import Array

MOST_VALUES = 32
"""Maximum number of values of an integer that becomes one-hot."""


class Bounds(NamedTuple):
    """Minimum and maximum value of an integer."""

    low: int
    high: int


def standard(obs: Array) -> Array:
    """Return a bool or uint8 observation unchanged, and any other as float32."""
    obs = jnp.asarray(obs)
    return obs if obs.dtype in (jnp.bool_, jnp.uint8) else obs.astype(jnp.float32)


def one_hot(values: Array, bounds: Bounds) -> Array:
    """Encode ``values`` [...] as one-hot [..., high - low + 1]; all False outside the bounds."""
    classes = jnp.arange(bounds.low, bounds.high + 1, dtype=jnp.int32)
    classes = classes.reshape((1,) * values.ndim + classes.shape)
    return jnp.expand_dims(values.astype(jnp.int32), -1) == classes


def bounded(values: Array, bounds: Bounds | None) -> Array:
    """Encode bounded integers [...] as one-hot or scaled; apply ``standard`` to anything else."""
    values = jnp.asarray(values)  # a suite may return Python numbers
    if bounds is None or not jnp.issubdtype(values.dtype, jnp.integer):
        return standard(values)
    if bounds.high - bounds.low < MOST_VALUES:
        return one_hot(values, bounds)
    return (values.astype(jnp.float32) - bounds.low) / float(bounds.high - bounds.low)


def planes(grid: Array, sizes: Sequence[int]) -> Array:
    """Encode the categories of grid cells as planes, one for each category.

    Args:
        grid: ``[H, W, C]`` integers; channel c has values from 0 to ``sizes[c]`` - 1.
        sizes: number of categories of each of the C channels.

    Returns:
        ``[H, W, sum(sizes)]`` bool
    """
    channels = [one_hot(grid[..., c], Bounds(0, size - 1)) for c, size in enumerate(sizes)]
    return jnp.concatenate(channels, axis=-1)


def parts(observation: Any, without: Sequence[str] = ()) -> dict[str, Array]:
    """Return the arrays of an observation by name, such as ``items.x_len``, in tree order.

    Args:
        observation: any pytree.
        without: names of fields to omit.
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
        bounds: bounds of its integers, by the names from ``parts``; other parts have no bounds.
        without: names of fields to omit.
    """
    known = bounds or {}
    values = [bounded(leaf, known.get(name)) for name, leaf in parts(observation, without).items()]
    if len(values) == 1:
        return values[0]
    dtype = jnp.bool_ if all(value.dtype == jnp.bool_ for value in values) else jnp.float32
    return jnp.concatenate([value.astype(dtype).reshape(-1) for value in values])


def _name(entry: Any) -> str:
    """Return the name of one entry of a ``jax.tree_util`` path."""
    for attribute in ("name", "key", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
