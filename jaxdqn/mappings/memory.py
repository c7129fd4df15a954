"""What a run takes on each device, by its parts."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from jaxdqn.replay import tree_bytes
from jaxdqn.types import PyTree, Trainer, TrainState


class DeviceBytes(NamedTuple):
    """Bytes of a run's state on each of its devices."""

    parameters: int
    """Of the online network."""
    target: int
    optimizer: int
    replay: int
    environments: int
    state: int
    """All of it."""


def bytes_per_device(trainer: Trainer, state: TrainState) -> DeviceBytes:
    """Return the bytes of a state, or of its shapes, on each device, computing nothing."""
    shardings = None if trainer.sharding is None else trainer.sharding(state)

    def count(part: PyTree, shardings: PyTree) -> int:
        leaves = jax.tree.leaves(part)
        return sum(
            math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf, sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
        )

    def parts(state: TrainState) -> tuple[PyTree, ...]:
        agent = state.agent
        networks = agent.params, agent.target_params, agent.opt_state
        return (*networks, state.replay, state.actor, state)

    if shardings is None:
        return DeviceBytes(*map(tree_bytes, parts(state)))
    return DeviceBytes(*map(count, parts(state), parts(shardings)))
