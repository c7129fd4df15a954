"""Conversion between training states and arrays for checkpoints.

Typed PRNG keys cannot be saved directly; they are replaced by their key data (integers).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.storage.jsonl import Record
from jaxdqn.types import PyTree, TrainState


def snapshot_key_data(state: PyTree) -> PyTree:
    """Copy a state on the device, with keys as key data, for ``to_host``. Jit this function.

    Without the copy the state could not be donated. On CPU the NumPy array of a JAX array is a
    view of its buffer, and a buffer with a view cannot be donated, so the next chunk would copy
    the ring.
    """
    return jax.tree.map(jnp.copy, with_key_data(state))


def with_key_data(state: PyTree) -> PyTree:
    """Return a state with its keys replaced by their key data."""
    return jax.tree.map(_key_data, state)


def restore_keys(arrays: PyTree, target: PyTree) -> PyTree:
    """Invert ``snapshot_key_data``: copy a state and convert key data to keys. Jit this function.

    Args:
        arrays: pytree returned by ``snapshot_key_data``.
        target: dtypes of the state, in the same structure.
    """

    def of_leaf(leaf: Any, like: Any) -> Any:
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(leaf, impl=like.dtype)
        # Copy: only a buffer that the device owns can be donated.
        return jnp.copy(leaf)

    return jax.tree.map(of_leaf, arrays, target)


def to_host(tree: PyTree) -> PyTree:
    """Return the leaves as NumPy arrays. These may be views, so do not donate the tree later."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def _key_data(leaf: Any) -> Any:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by path name, in the order of the tree."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def describe_leaf(leaf: Any) -> str:
    """Return the dtype and shape of a leaf as text, such as ``float32[4, 2]``."""
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def without_replay(state: TrainState) -> TrainState:
    """Return the state with an empty replay, as ``replay_in_checkpoint=False`` saves it."""
    return state._replace(replay=())


def shape_for(state: TrainState, meta: Record) -> TrainState:
    """Return the part of a state that a checkpoint with this ``meta`` contains."""
    return state if meta["replay"] else without_replay(state)


def lacks_replay(state: PyTree) -> bool:
    """Return True if a state was saved without its replay."""
    return not jax.tree.leaves(state.replay)
