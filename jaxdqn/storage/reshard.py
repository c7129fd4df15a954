"""A run that goes on over another number of devices: its state, laid out anew."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.communication.collectives import DEVICE_AXIS, device_collectives
from jaxdqn.communication.compression import ResidualState
from jaxdqn.config.config import Config
from jaxdqn.replay.redistribute import redistribute
from jaxdqn.storage.state import key_data_of
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import TrainState


def is_divided(config: Config) -> bool:
    """Say whether the leaves of a run's state have a leading axis [D] of replicas."""
    return config.learners == 1 and config.devices > 1


def same_layout(old: Config, new: Config) -> bool:
    """Say whether states of both configurations have the same shapes."""
    return is_divided(old) == is_divided(new) and old.replicas == new.replicas


def state_shape(config: Config, **parts: Any) -> TrainState:
    """Return the shapes of a run's state, whether or not its devices are here.

    Args:
        parts: the run's own environment, network or optimizer, as ``make_trainer`` takes them.
    """
    alone = make_trainer(config, collectives=device_collectives(config.replicas), **parts)
    init = alone.init
    if is_divided(config):
        # To vmap it gives the axis, and its name, that devices would.
        init = jax.vmap(alone.init, in_axes=None, axis_size=config.replicas, axis_name=DEVICE_AXIS)
    return jax.eval_shape(init, jax.random.key(0))


def reshard(words: Any, old: Config, new: Config, target: TrainState) -> Any:
    """Return a state laid out for the replicas of another configuration.

    Environments and rows keep their places and only change their device. What all
    replicas share is taken over; optimiser moments that replicas had of their own,
    under periodic averaging, become their mean. Residuals of compression belong to
    devices that are no more, and begin at zero. Keys are drawn anew from the first
    device's, so the run is not the same to the bit.

    Args:
        words: NumPy leaves, keys as their words, as a checkpoint holds them.
        old: the configuration they were saved under.
        new: the one to go on under; the same but for ``devices`` and what depends on them, and
            for how replicas learn together where it has but one.
        target: the shapes of its state.
    """
    if same_layout(old, new):
        return words
    state = words if is_divided(old) else jax.tree.map(lambda leaf: leaf[None], words)
    devices = new.replicas

    def shared(leaf: np.ndarray) -> np.ndarray:
        return np.stack([leaf[0]] * devices)

    # Others are the same in all replicas, and their mean might round.
    own_moments = old.average_every is not None and not old.average_moments
    # Without the residuals these follow each other alike, compressed or averaged or not.
    nodes = jax.tree.leaves(state.agent.opt_state, is_leaf=_is_residual)
    kept = iter([node for node in nodes if not _is_residual(node)])

    def zeros(like: Any) -> np.ndarray:
        return np.zeros(like.shape if is_divided(new) else (1, *like.shape), like.dtype)

    def of_optimizer(like: Any) -> Any:
        if _is_residual(like):
            return jax.tree.map(zeros, like)
        leaf = next(kept)
        if own_moments and np.issubdtype(leaf.dtype, np.floating):
            leaf = np.mean(leaf, axis=0, keepdims=True, dtype=leaf.dtype)
        return shared(leaf)

    def by_env(leaf: np.ndarray) -> np.ndarray:
        return leaf.reshape(devices, -1, *leaf.shape[2:])

    agent = state.agent
    divided = state._replace(
        key=_keys(state.key, target.key, devices),
        hyper=jax.tree.map(shared, state.hyper),
        agent=jax.tree.map(shared, agent._replace(opt_state=()))._replace(
            opt_state=jax.tree.map(of_optimizer, target.agent.opt_state, is_leaf=_is_residual)
        ),
        replay=redistribute(state.replay, devices) if jax.tree.leaves(state.replay) else (),
        actor=jax.tree.map(by_env, state.actor),
        counters=jax.tree.map(shared, state.counters),
    )
    return divided if is_divided(new) else jax.tree.map(lambda leaf: leaf[0], divided)


def _is_residual(node: Any) -> bool:
    return isinstance(node, ResidualState)


def _keys(words: Any, like: Any, devices: int) -> Any:
    key = jax.random.wrap_key_data(jnp.asarray(words[0]), impl=like.dtype)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(devices, dtype=jnp.int32))
    return np.asarray(key_data_of(keys))
