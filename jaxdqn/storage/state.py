"""Training states as arrays that can be saved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.storage.jsonl import Record
from jaxdqn.types import PyTree, TrainState


def snapshot_key_data(state: PyTree) -> PyTree:
    """Copy a state, its keys as words; jit it, for ``to_host`` to read.

    The copy is what keeps the state donatable: on CPU a NumPy array of a JAX array
    is a view, and a buffer that is viewed cannot be donated, so that the next chunk
    would copy the ring.
    """
    return jax.tree.map(jnp.copy, key_data_of(state))


def key_data_of(state: PyTree) -> PyTree:
    """Return a state with its keys as words."""
    return jax.tree.map(_words, state)


def restore_keys(words: PyTree, target: PyTree) -> PyTree:
    """Return the state of which the words were taken; jit it.

    Args:
        words: as ``snapshot_key_data`` gives them.
        target: the state's dtypes, in the same structure.
    """

    def of_leaf(leaf: Any, like: Any) -> Any:
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(leaf, impl=like.dtype)
        # A copy: the buffer must be the device's own to be donated.
        return jnp.copy(leaf)

    return jax.tree.map(of_leaf, words, target)


def to_host(tree: PyTree) -> PyTree:
    """Return the leaves as NumPy arrays, of a tree that nobody will donate."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def _words(leaf: Any) -> Any:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by their names, in the tree's order."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def describe_leaf(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def without_replay(state: TrainState) -> TrainState:
    """Return the state as it is saved where the replay is not."""
    return state._replace(replay=())


def shape_for(state: TrainState, meta: Record) -> TrainState:
    """Return the shapes of a state as a checkpoint with this ``meta`` holds it."""
    return state if meta["replay"] else without_replay(state)


def lacks_replay(words: PyTree) -> bool:
    return not jax.tree.leaves(words.replay)
