"""Reshard the state of a run, to resume it on a different number of devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn import envs
from jaxdqn.communication.collectives import DEVICE_AXIS, device_collectives
from jaxdqn.communication.compression import ResidualState
from jaxdqn.communication.outer import OuterState
from jaxdqn.config.config import Config
from jaxdqn.replay.redistribute import redistribute
from jaxdqn.storage.state import with_key_data
from jaxdqn.training.trainer import make_trainer
from jaxdqn.training.vector_trainer import make_single_trainer
from jaxdqn.types import TrainState, trained_params


def has_replica_axis(config: Config) -> bool:
    """Return True if the leaves of a run's state have a leading axis [D] of replicas."""
    return config.learners == 1 and config.devices > 1


def same_layout(old: Config, new: Config) -> bool:
    """Return True if the states of both configurations have the same shapes."""
    return has_replica_axis(old) == has_replica_axis(new) and old.replicas == new.replicas


def state_shape(config: Config, **parts: Any) -> TrainState:
    """Return the shapes of a run's state. The devices of the run need not be present.

    Args:
        config: configuration of the run.
        parts: custom parts, see ``make_trainer``.
    """
    if envs.configured_host_environment(config, parts.get("environment")) is not None:
        return jax.eval_shape(make_single_trainer(config, **parts).init, jax.random.key(0))
    trainer = make_trainer(config, collectives=device_collectives(config.replicas), **parts)
    init = trainer.init
    if has_replica_axis(config):
        # A vmap with the name of the device axis gives the same shapes as a mapping over devices.
        init = jax.vmap(init, in_axes=None, axis_size=config.replicas, axis_name=DEVICE_AXIS)
    return jax.eval_shape(init, jax.random.key(0))


def reshard(saved: Any, old: Config, new: Config, target: TrainState) -> Any:
    """Convert a state to the replica layout of another configuration.

    - Environments and rows keep their order; only their device changes.
    - Leaves that are equal on all replicas are copied to the new replicas.
    - Optimiser moments that differ between replicas, under periodic averaging, are averaged.
    - Compression residuals belong to the old devices and are reset to zero.
    - An outer optimiser that the old run did not have starts from the parameters.
    - Keys are derived from the key of the first device, so the resumed run is not bitwise
      identical to an uninterrupted one.

    Args:
        saved: state in a checkpoint: NumPy leaves, keys as key data.
        old: configuration of the checkpoint.
        new: configuration to resume under. It may differ in ``devices``, ``mapping`` and
            ``model_devices``; with one replica also in the options for replicas.
        target: shapes of the new state.
    """
    if same_layout(old, new):
        return saved
    # From here on every leaf has an axis of replicas, of length 1 for a single replica.
    state = saved if has_replica_axis(old) else jax.tree.map(lambda leaf: leaf[None], saved)
    devices = new.replicas

    def shared(leaf: np.ndarray) -> np.ndarray:
        return np.stack([leaf[0]] * devices)

    def by_env(leaf: np.ndarray) -> np.ndarray:
        return leaf.reshape(devices, -1, *leaf.shape[2:])

    agent = jax.tree.map(shared, state.agent._replace(opt_state=()))
    moved = state._replace(
        key=_split_key(state.key, target.key, devices),
        hyper=jax.tree.map(shared, state.hyper),
        agent=agent._replace(
            opt_state=_reshard_optimizer(state.agent, old, new, target.agent.opt_state)
        ),
        replay=(
            redistribute(state.replay, devices, stride=old.start_stride)
            if jax.tree.leaves(state.replay)
            else ()
        ),
        actor=jax.tree.map(by_env, state.actor),
        counters=jax.tree.map(shared, state.counters),
    )
    return moved if has_replica_axis(new) else jax.tree.map(lambda leaf: leaf[0], moved)


def _reshard_optimizer(agent: Any, old: Config, new: Config, target: Any) -> Any:
    """Reshard an optimiser state: leaves [old replicas, ...] to [new replicas, ...]."""
    # Average only moments that differ between replicas, because a mean of equal values may round.
    average = old.average_every is not None and not old.average_moments
    # Without residuals and the outer optimiser, both states have the same leaves in the same order,
    # whether compression or averaging are used or not.
    nodes = jax.tree.leaves(agent.opt_state, is_leaf=_is_of_replicas)
    leaves = iter([node for node in nodes if not _is_of_replicas(node)])
    params = trained_params(agent.params)
    outer = next(
        (node for node in nodes if isinstance(node, OuterState)),
        OuterState(params, jax.tree.map(np.zeros_like, params)),
    )

    def shared(leaf: np.ndarray) -> np.ndarray:
        return np.stack([leaf[0]] * new.replicas)

    def zeros(like: Any) -> np.ndarray:
        return np.zeros(like.shape if has_replica_axis(new) else (1, *like.shape), like.dtype)

    def convert(like: Any) -> Any:
        if isinstance(like, OuterState):
            return jax.tree.map(shared, outer)
        if isinstance(like, ResidualState):
            return jax.tree.map(zeros, like)
        leaf = next(leaves)
        if average and np.issubdtype(leaf.dtype, np.floating):
            leaf = np.mean(leaf, axis=0, keepdims=True, dtype=leaf.dtype)
        return shared(leaf)

    return jax.tree.map(convert, target, is_leaf=_is_of_replicas)


def _is_of_replicas(node: Any) -> bool:
    """Return whether a node belongs to the communication of replicas, and not to the optimiser."""
    return isinstance(node, ResidualState | OuterState)


def _split_key(key_data: Any, like: Any, devices: int) -> Any:
    """Return key data [devices, ...], derived from the key of the first device."""
    key = jax.random.wrap_key_data(jnp.asarray(key_data[0]), impl=like.dtype)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(devices, dtype=jnp.int32))
    return np.asarray(with_key_data(keys))
