"""A sum tree: weights that change, and draws in proportion to them.

Every node has ``F`` children (8 to 32): a million leaves are five levels of 16,
and a node's children are one cache line. Parents are *recomputed* from their
children, never updated by differences, so float32 does not drift: the root is
the sum of the leaves to the rounding of one summation, however many updates
there were, and an index written twice is harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdqn.types import Array

FAN_OUT = 16


class SumTree(NamedTuple):
    """Weights and the sums over them."""

    levels: tuple[Array, ...]
    """Each [nodes, F] float32: the children of every node, the leaves first, the root's last. A
    level has a node for each of the children above it that is not padding."""


def init_tree(capacity: int, fan_out: int = FAN_OUT) -> SumTree:
    """Return a tree of ``capacity`` leaves, all zero.

    Raises:
      ValueError: if there would be no leaf, or no tree.
    """
    if capacity < 1:
        raise ValueError(f"capacity={capacity}: must be at least 1")
    if fan_out < 2:
        raise ValueError(f"fan_out={fan_out}: must be at least 2")
    levels: list[Array] = []
    nodes = capacity
    while not levels or nodes > 1:
        nodes = -(-nodes // fan_out)
        levels.append(jnp.zeros((nodes, fan_out), jnp.float32))
    return SumTree(tuple(levels))


def tree_of(leaves: np.ndarray, fan_out: int = FAN_OUT) -> SumTree:
    """Return the tree of NumPy leaves [capacity], itself of NumPy arrays. Not to be jitted."""
    levels: list[Any] = []
    level = np.asarray(leaves, np.float32)
    while not levels or levels[-1].shape[0] > 1:
        level = np.pad(level, (0, -level.size % fan_out)).reshape(-1, fan_out)
        levels.append(level)
        level = level.sum(axis=1)
    return SumTree(tuple(levels))


def total(tree: SumTree) -> Array:
    """Return the sum of all leaves: [] float32."""
    return jnp.sum(tree.levels[-1])


def leaves_at(tree: SumTree, index: Array) -> Array:
    """Return the leaves at ``index`` [n], which must be in range."""
    return tree.levels[0].reshape(-1).at[index].get(mode="promise_in_bounds")


def set_leaves(tree: SumTree, index: Array, values: Array) -> SumTree:
    """Write leaves and recompute every sum above them.

    Args:
      index: ``[n]`` int32; what is out of range, past the end, is left out. Where
        one stands twice either value is taken.
      values: ``[n]`` float32, not negative.
    """
    nodes, fan_out = tree.levels[0].shape
    return _write(tree, index, values, jnp.minimum(index // fan_out, nodes - 1))


def set_runs(tree: SumTree, runs: Sequence[tuple[Array, Array, Array]], capacity: int) -> SumTree:
    """Write runs of leaves that follow one another; as ``set_leaves``, with fewer sums to make.

    Args:
      runs: ``(start, values, wanted)``, [] int32, [n] float32, [n] bool: leaves ``start``,
        ``start + 1``, ..., modulo ``capacity``, of which only the wanted are written.
      capacity: leaves of the tree.
    """
    fan_out, past = tree.levels[0].shape[1], tree.levels[0].size
    index, parents = [], []
    for start, values, wanted in runs:
        length = values.shape[0]
        ahead = jnp.arange(length, dtype=jnp.int32)
        index.append(jnp.where(wanted, (start + ahead) % capacity, past))
        # One leaf of each parent, and the ends, where a run that wraps is cut.
        each = (start + jnp.arange(0, length, fan_out, dtype=jnp.int32)) % capacity
        ends = jnp.stack([(start + length - 1) % capacity, jnp.int32(0), jnp.int32(capacity - 1)])
        parents += [each // fan_out, ends // fan_out]
    values = jnp.concatenate([values for _, values, _ in runs])
    return _write(tree, jnp.concatenate(index), values, jnp.concatenate(parents))


def draw(tree: SumTree, strata: Array, offsets: Array) -> tuple[Array, Array]:
    """Find the leaves that hold positions in the cumulative sum of all.

    A position is the sum of two numbers: the first may be large and coarse, the
    second small and fine. One float32 alone resolves 2^-24 of the total, about
    one leaf of ten million.

    A leaf of zero is never returned, whatever the position, as long as some leaf is positive.

    Args:
      strata: ``[n]`` float32
      offsets: ``[n]`` float32; ``strata + offsets`` is from 0 to the total.

    Returns:
      Indices ``[n]`` int32 and the leaves there ``[n]`` float32.
    """
    fan_out = tree.levels[0].shape[1]
    node = jnp.zeros(strata.shape, jnp.int32)
    for level in reversed(tree.levels):
        children = level.at[node].get(mode="promise_in_bounds")  # [n, F]
        child, before = _find(children, strata, offsets)
        # Rounding here moves the ends of a stratum by an ulp, not what is inside: that varies
        # with the offsets alone.
        strata = strata - before
        node = node * fan_out + child
    return node, leaves_at(tree, node)


def _find(children: Array, strata: Array, offsets: Array) -> tuple[Array, Array]:
    """Return the child [n] that holds each position, and the sum [n] of those before it.

    Unrolled over the F children, which the compiler makes one vectorised loop over n of:
    on CPU two to four times as fast as reductions over an axis of F.
    """
    sums = [children[:, 0]]
    for place in range(1, children.shape[1]):
        sums.append(sums[-1] + children[:, place])
    child, before = jnp.zeros(strata.shape, jnp.int32), jnp.zeros_like(strata)
    for upto in sums:
        # A child of zero has the sum of the one before it, and no condition tells them apart;
        # so the first child that fulfils one is positive. Rounding may put a position at or
        # past the end: the second condition then finds the last that is positive.
        beyond = (((upto - strata) - offsets > 0) & (upto > 0)) | (upto >= sums[-1])
        child = child + (~beyond).astype(jnp.int32)
        before = jnp.where(beyond, before, upto)
    return child, before


def _write(tree: SumTree, index: Array, values: Array, parents: Array) -> SumTree:
    """Write leaves, then the sums at ``parents`` and all above."""
    fan_out, levels = tree.levels[0].shape[1], []
    leaves = tree.levels[0].reshape(-1).at[index].set(values, mode="drop")
    level = leaves.reshape(tree.levels[0].shape)
    for above in tree.levels[1:]:
        levels.append(level)
        nodes = level.shape[0]
        if nodes <= parents.shape[0]:
            # Every sum at once is cheaper than as many gathers and writes.
            sums = jnp.pad(jnp.sum(level, axis=1), (0, above.size - nodes))
            level = sums.reshape(above.shape)
            continue
        sums = jnp.sum(level.at[parents].get(mode="promise_in_bounds"), axis=1)
        flat = above.reshape(-1).at[parents].set(sums, mode="promise_in_bounds")
        level = flat.reshape(above.shape)
        parents = parents // fan_out
    return SumTree((*levels, level))
