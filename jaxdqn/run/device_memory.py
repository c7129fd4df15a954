"""Memory of each part of a run on a device, and the bytes that replicas send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from jaxdqn.backend_choices import population_form
from jaxdqn.communication.cost import bytes_per_gradient_step
from jaxdqn.config.config import Config
from jaxdqn.replay import tree_bytes
from jaxdqn.training.vector_trainer import AnyTrainer
from jaxdqn.types import PyTree, TrainState, trained_params


class DeviceBytes(NamedTuple):
    """Bytes of a run's state on each of its devices."""

    parameters: int
    """Parameters of the online network."""
    target: int
    optimizer: int
    replay: int
    environments: int
    state: int
    """The complete state."""


def bytes_per_device(trainer: AnyTrainer, state: TrainState) -> DeviceBytes:
    """Return the bytes of a state on each device, given its arrays or its shapes."""
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


def working_bytes(config: Config, taken: int) -> int:
    """Return the bytes of a part of the state on each device during training.

    A population mapped by ``lax.map`` holds a second copy of the learner in training.

    Args:
        config: configuration of the run.
        taken: bytes of the part within the state.
    """
    if config.learners == 1 or not runs_in_turn(config):
        return taken
    return taken + taken * config.devices // config.learners


def runs_in_turn(config: Config) -> bool:
    """Return True if the learners of a population run one after the other on a device."""
    return population_form(config.population) == "map"


def local_devices(config: Config) -> int:
    """Return the number of devices of this process that a run uses."""
    return config.devices if jax.process_count() == 1 else jax.local_device_count()


def devices_that_count_memory(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Return the devices that report their memory in use; none on CPU."""
    return [device for device in devices if "bytes_in_use" in (device.memory_stats() or {})]


def bytes_in_use(devices: Sequence[jax.Device]) -> int:
    """Return the maximum over devices of the bytes of memory in use.

    Args:
        devices: devices of ``devices_that_count_memory``, at least one.
    """
    return max(device.memory_stats()["bytes_in_use"] for device in devices)


def bytes_sent(config: Config, state: TrainState) -> float | None:
    """Return the bytes that each replica sends per gradient step; None for one replica.

    Args:
        config: configuration of the run.
        state: state of the run, or its shapes.
    """
    if config.replicas == 1:
        return None
    trained = trained_params(state.agent.params)
    # The shapes without the axis of replicas.
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(trained)]
    return bytes_per_gradient_step(config, sum(map(math.prod, shapes)), shapes).total
