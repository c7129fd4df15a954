"""Pytree helpers: size in bytes, norms, and packing of small leaves into one vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, PyTree

PACK_LIMIT = 16_384
"""Maximum number of elements of a tensor that ``pack`` packs."""


def global_norm(tree: PyTree) -> Array:
    """Return the Euclidean norm of all leaves together.

    The norm is taken over the result of ``pack``. The optimiser packs the same tree, and the
    compiler packs it only once. With ``optax.tree.norm``, which reduces each
    leaf separately, a learning iteration (MLP 4-120-84-2, batch 128) takes 1.16 times as long.
    """
    return jnp.sqrt(square(pack(tree)))


def square(tree: PyTree) -> Array:
    """Return the sum of the squares of all elements."""

    def of_leaf(leaf: Array) -> Array:
        # Contract all axes of the leaf. Flattening it first, as ``vdot`` does, would gather a
        # leaf that is sharded by columns over several devices.
        axes = tuple(range(leaf.ndim))
        return jax.lax.dot_general(leaf, leaf, ((axes, axes), ((), ())))

    return sum(map(of_leaf, jax.tree.leaves(tree)), jnp.float32(0))


def is_small(leaf: Array, limit: int = PACK_LIMIT) -> bool:
    """Return whether ``pack`` puts a tensor into its vector."""
    return leaf.size <= limit and leaf.dtype == jnp.float32


def pack(tree: PyTree, limit: int = PACK_LIMIT) -> PyTree:
    """Concatenate the small float32 leaves into one vector; leave the others unchanged.

    Returns:
        ``small``, the vector (an empty tuple if no leaf is small), and ``large``, a list of the
        other leaves, both in the order of the tree.
    """
    leaves = jax.tree.leaves(tree)
    small = [leaf.ravel() for leaf in leaves if is_small(leaf, limit)]
    large = [leaf for leaf in leaves if not is_small(leaf, limit)]
    return {"small": jnp.concatenate(small) if small else (), "large": large}


def unpack(packed: PyTree, like: PyTree, limit: int = PACK_LIMIT) -> PyTree:
    """Invert ``pack``; ``like`` has the structure, shapes and dtypes of the original tree."""
    leaves, structure = jax.tree.flatten(like)
    large, offset, unpacked = iter(packed["large"]), 0, []
    for leaf in leaves:
        if is_small(leaf, limit):
            part = packed["small"][offset : offset + leaf.size]
            unpacked.append(part.reshape(leaf.shape))
            offset += leaf.size
        else:
            unpacked.append(next(large))
    return jax.tree.unflatten(structure, unpacked)


def tree_bytes(tree: PyTree) -> int:
    """Return the total bytes of all leaves, which are arrays or ``ShapeDtypeStruct``."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
