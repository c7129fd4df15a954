"""Transfer of sharded arrays to and from the host memory of process 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxdqn.parallel.multihost import as_bytes, is_coordinator, send
from jaxdqn.types import PyTree

_Index = tuple[slice, ...]


def gather(tree: PyTree) -> PyTree | None:
    """Gather sharded leaves as NumPy arrays on process 0; return None on the other processes.

    The data are sent in pieces of 64 MiB, so a device holds at most its shards and two pieces. The
    host of process 0 needs memory for the complete arrays.
    """
    leaves, structure = jax.tree.flatten(tree)
    gathered = [np.empty(leaf.shape, leaf.dtype) for leaf in leaves] if is_coordinator() else []
    for owner in range(jax.process_count()):
        indices = [_indices(leaf.sharding, leaf.shape, owner) for leaf in leaves]
        blocks = None
        if owner == jax.process_index():
            blocks = [_shards(leaf, each) for leaf, each in zip(leaves, indices, strict=True)]
        elif is_coordinator():
            blocks = [_buffers(leaf, each) for leaf, each in zip(leaves, indices, strict=True)]
        if owner != 0:
            _send_blocks(owner, leaves, indices, blocks)
        if is_coordinator():
            assert blocks is not None
            for target, each, values in zip(gathered, indices, blocks, strict=True):
                for index, value in zip(each, values, strict=True):
                    target[index] = value
    return jax.tree.unflatten(structure, gathered) if is_coordinator() else None


def broadcast_sharded(tree: PyTree, shardings: PyTree) -> PyTree:
    """Make sharded arrays from NumPy arrays of process 0, sent in pieces as in ``gather``.

    Args:
      tree: NumPy leaves on process 0; on the other processes, leaves of any type with the same
        shapes and dtypes.
      shardings: sharding of each leaf.
    """
    leaves, structure = jax.tree.flatten(tree)
    layouts = jax.tree.leaves(shardings)
    local: list[dict[Any, np.ndarray]] = []
    for receiver in range(jax.process_count()):
        indices = [
            _indices(layout, leaf.shape, receiver)
            for leaf, layout in zip(leaves, layouts, strict=True)
        ]
        blocks = None
        if is_coordinator():
            blocks = [_slices(leaf, each) for leaf, each in zip(leaves, indices, strict=True)]
        elif receiver == jax.process_index():
            blocks = [_buffers(leaf, each) for leaf, each in zip(leaves, indices, strict=True)]
        if receiver != 0:
            _send_blocks(0, leaves, indices, blocks)
        if receiver == jax.process_index():
            assert blocks is not None
            local = [
                {_key(index): value for index, value in zip(each, values, strict=True)}
                for each, values in zip(indices, blocks, strict=True)
            ]

    def assemble(leaf: Any, layout: Any, shards: dict[Any, np.ndarray]) -> jax.Array:
        return jax.make_array_from_callback(
            leaf.shape, layout, lambda index: shards[_key(index or ())], dtype=leaf.dtype
        )

    return jax.tree.unflatten(structure, map(assemble, leaves, layouts, local))


def _send_blocks(
    owner: int,
    leaves: Sequence[Any],
    indices: Sequence[Sequence[_Index]],
    blocks: Sequence[Sequence[np.ndarray]] | None,
) -> None:
    """Send parts of leaves from their owner; ``blocks`` is None on a process that needs no data."""
    sizes = [
        math.prod(_part_shape(index, leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf, each in zip(leaves, indices, strict=True)
        for index in each
    ]
    views = None if blocks is None else [as_bytes(block) for each in blocks for block in each]
    send(owner, sizes, views)


def _indices(sharding: Any, shape: tuple[int, ...], process: int) -> list[_Index]:
    """Return the indices of the distinct parts of an array on the devices of a process."""
    parts = {
        _key(index): index
        for device, index in sharding.devices_indices_map(shape).items()
        if device.process_index == process
    }
    return list(parts.values())


def _shards(leaf: jax.Array, indices: list[_Index]) -> list[np.ndarray]:
    data = {_key(shard.index or ()): shard.data for shard in leaf.addressable_shards}
    return [np.asarray(data[_key(index)], order="C") for index in indices]


def _slices(leaf: Any, indices: list[_Index]) -> list[np.ndarray]:
    return [np.asarray(leaf[index], order="C") for index in indices]


def _buffers(leaf: Any, indices: list[_Index]) -> list[np.ndarray]:
    return [np.empty(_part_shape(index, leaf.shape), leaf.dtype) for index in indices]


def _part_shape(index: _Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    parts = zip(index, shape, strict=True)
    return tuple(len(range(*part.indices(size))) for part, size in parts)


def _key(index: _Index) -> tuple[tuple[int | None, int | None], ...]:
    """Convert an index to a dictionary key, because slices are unhashable before Python 3.12."""
    return tuple((part.start, part.stop) for part in index)
