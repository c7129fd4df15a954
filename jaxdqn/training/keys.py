"""Random keys by name: those of one iteration, from a single split, and those of a run's start."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, PyTree

_HOST_STREAM = 0x656E76


class IterationKeys(NamedTuple):
    """Keys of one iteration, or their shapes."""

    next: PyTree
    """[], the key of the state after the iteration"""
    act: PyTree
    """[K, 1 + E]: for each vector step the key of the agent, then one for each environment"""
    learn: PyTree
    """Keys of the gradient steps, in the layout of ``Learning.key_shapes``."""


class StartKeys(NamedTuple):
    """Keys for the start of a run on one replica."""

    agent: Array
    """Equal on all replicas."""
    envs: Array
    warm_up: Array
    run: Array
    """``TrainState.key``"""


def start_keys(key: Array, replica: Array | int) -> StartKeys:
    """Return the keys for the start of a run.

    Args:
        key: key of the run, equal on all replicas; consumed.
        replica: index of this replica.
    """
    key_agent, key_replica = jax.random.split(typed_key(key))
    return StartKeys(key_agent, *jax.random.split(jax.random.fold_in(key_replica, replica), 3))


def typed_key(key: Array) -> Array:
    """Return ``key`` as a typed key; a raw key from ``jax.random.PRNGKey`` is wrapped.

    Raises:
        ValueError: if ``key`` is neither a typed nor a raw key.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return key
    if dtype != jnp.uint32 or key.ndim != 1:
        raise ValueError(
            f"key={key!r}: must be a key of jax.random.key, or a raw one of jax.random.PRNGKey"
        )
    return jax.random.wrap_key_data(key)


def seed_of(key: Array) -> int:
    """Derive a seed below 2**31 for environments on the host, without consuming the key."""
    return int(jax.random.bits(jax.random.fold_in(key, _HOST_STREAM), dtype=jnp.uint32) >> 1)


@jax.named_scope("keys")
def split_named(key: Array, shapes: PyTree) -> PyTree:
    """Split a key into a pytree of keys, in the order of the leaves of ``shapes``.

    One split serves all keys, because on CPU every random call compiles to a separate loop, however
    many keys it returns.

    Args:
      key: random key; consumed.
      shapes: pytree of NamedTuples whose leaves are shapes (plain tuples). The empty tuple is the
        shape of a single key.

    Returns:
      The same pytree with an array of keys for each shape.
    """
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda node: type(node) is tuple)
    sizes = [math.prod(shape) for shape in leaves]
    keys = jax.random.split(key, sum(sizes))
    parts = [
        keys[end - size : end].reshape(shape)
        for shape, size, end in zip(leaves, sizes, accumulate(sizes), strict=True)
    ]
    return jax.tree.unflatten(structure, parts)
