"""Sum tree: mutable weights, and draws proportional to them.

Every node has ``F`` children. With 16, the default, a million leaves take five levels, and the
children of a node fill one cache line.

Invariant: every inner entry is the float32 sum of its children, *recomputed* at each write instead
of updated by a difference. Errors therefore do not accumulate: after any number of updates the root
equals the sum of the leaves up to the rounding of one summation. For the same reason it is harmless
to write an index twice in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdqn.types import Array

FAN_OUT = 16


class SumTree(NamedTuple):
    """Weights (the leaves) and their partial sums."""

    levels: tuple[Array, ...]
    """Arrays [nodes, F] float32, each row the children of one node. Level 0 holds the leaves. The
    last level has one row, the children of the root. Row i of a level sums to flat entry i of the
    next level; entries without such a row are padding with value 0."""


def init_tree(capacity: int, fan_out: int = FAN_OUT) -> SumTree:
    """Make a tree of ``capacity`` leaves, all zero.

    Raises:
      ValueError: if ``capacity`` is below 1 or ``fan_out`` below 2.
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


def tree_from_leaves(leaves: np.ndarray, fan_out: int = FAN_OUT) -> SumTree:
    """Build a tree of NumPy arrays from NumPy leaves [capacity]. Cannot be jitted."""
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
    """Return the leaves at ``index`` [n] int32, which must be in range."""
    return tree.levels[0].reshape(-1).at[index].get(mode="promise_in_bounds")


def set_leaves(tree: SumTree, index: Array, values: Array) -> SumTree:
    """Write leaves and recompute every sum above them.

    Args:
      index: ``[n]`` int32, not negative. Indices past the end are ignored. If an index occurs
        twice, either value may be written.
      values: ``[n]`` float32, not negative.
    """
    nodes, fan_out = tree.levels[0].shape
    return _write(tree, index, values, jnp.minimum(index // fan_out, nodes - 1))


def set_runs(tree: SumTree, runs: Sequence[tuple[Array, Array, Array]], capacity: int) -> SumTree:
    """Write runs of consecutive leaves, with about one parent to recompute per F leaves.

    ``set_leaves`` would recompute one parent per leaf. If two runs write the same leaf, either
    value may be written.

    Args:
      runs: ``(start, values, mask)``, [] int32, [n] float32, [n] bool, for the leaves ``start``,
        ``start + 1``, ..., modulo ``capacity``. Only leaves with a true mask are written.
      capacity: number of leaves of the tree, without padding.
    """
    fan_out, past = tree.levels[0].shape[1], tree.levels[0].size
    index, parents = [], []
    for start, values, mask in runs:
        length = values.shape[0]
        offset = jnp.arange(length, dtype=jnp.int32)
        index.append(jnp.where(mask, (start + offset) % capacity, past))
        # Every F-th leaf of the run covers all its parents except possibly the last one. A run that
        # wraps around has two pieces. So add the parent at the end of the run and the parents at
        # both ends of the tree.
        each = (start + jnp.arange(0, length, fan_out, dtype=jnp.int32)) % capacity
        ends = jnp.stack([(start + length - 1) % capacity, jnp.int32(0), jnp.int32(capacity - 1)])
        parents += [each // fan_out, ends // fan_out]
    values = jnp.concatenate([values for _, values, _ in runs])
    return _write(tree, jnp.concatenate(index), values, jnp.concatenate(parents))


def draw(tree: SumTree, strata: Array, offsets: Array) -> tuple[Array, Array]:
    """Find the leaves at the given positions of the cumulative sum over all leaves.

    A position is the sum of a large, coarse part and a small, fine part. They are passed
    separately, because a single float32 resolves only 2^-24 of the total, about one leaf in ten
    million.

    A zero leaf is never returned if at least one leaf is positive.

    Args:
      strata: ``[n]`` float32, coarse part of the position.
      offsets: ``[n]`` float32, fine part; ``strata + offsets`` is between 0 and the total.

    Returns:
      The indices ``[n]`` int32, and the leaves at these indices ``[n]`` float32.
    """
    fan_out = tree.levels[0].shape[1]
    node = jnp.zeros(strata.shape, jnp.int32)
    for level in reversed(tree.levels):
        children = level.at[node].get(mode="promise_in_bounds")  # [n, F]
        child, before = _find(children, strata, offsets)
        # Subtract from the coarse number only. Its rounding moves the ends of a stratum by one ulp.
        # The offsets remain exact and determine the resolution inside a stratum.
        strata = strata - before
        node = node * fan_out + child
    return node, leaves_at(tree, node)


def _find(children: Array, strata: Array, offsets: Array) -> tuple[Array, Array]:
    """Return the child [n] at each position, and the sum [n] of the children before it.

    The loop over the F children is unrolled. The compiler turns it into one vectorised loop over
    n, which on CPU is two to four times as fast as reductions over an axis of length F.

    Args:
      children: ``[n, F]`` float32, at least one positive in each row.
      strata: ``[n]`` float32, coarse part of the position.
      offsets: ``[n]`` float32, fine part of the position.
    """
    sums = [children[:, 0]]
    for index in range(1, children.shape[1]):
        sums.append(sums[-1] + children[:, index])
    child, before = jnp.zeros(strata.shape, jnp.int32), jnp.zeros_like(strata)
    for cumulative in sums:
        # The result is the first child whose cumulative sum satisfies one of two conditions. Both
        # depend only on the cumulative sum, and a zero child has the same sum as its predecessor,
        # so the first child that satisfies one is positive. The second condition handles positions
        # that rounding has moved to or past the end; it selects the last positive child.
        reached = (((cumulative - strata) - offsets > 0) & (cumulative > 0)) | (
            cumulative >= sums[-1]
        )
        # Once one sum is reached, all later sums are, so the child's index is the number of
        # unreached sums.
        child = child + (~reached).astype(jnp.int32)
        before = jnp.where(reached, before, cumulative)
    return child, before


def _write(tree: SumTree, index: Array, values: Array, parents: Array) -> SumTree:
    """Write leaves, then recompute the sums of the nodes ``parents`` and of all their ancestors.

    Args:
      index: ``[n]`` int32; indices past the end are ignored.
      values: ``[n]`` float32
      parents: ``[m]`` int32, in range: rows of level 0, including the rows of all written leaves.
    """
    fan_out, levels = tree.levels[0].shape[1], []
    leaves = tree.levels[0].reshape(-1).at[index].set(values, mode="drop")
    level = leaves.reshape(tree.levels[0].shape)
    for above in tree.levels[1:]:
        levels.append(level)
        nodes = level.shape[0]
        if nodes <= parents.shape[0]:
            # Recomputing all sums is cheaper than this many gathers and scatters.
            sums = jnp.pad(jnp.sum(level, axis=1), (0, above.size - nodes))
            level = sums.reshape(above.shape)
            continue
        sums = jnp.sum(level.at[parents].get(mode="promise_in_bounds"), axis=1)
        flat = above.reshape(-1).at[parents].set(sums, mode="promise_in_bounds")
        level = flat.reshape(above.shape)
        parents = parents // fan_out
    return SumTree((*levels, level))
