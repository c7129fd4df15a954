"""Synchronous data parallelism: the same step on every device, gradients averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdqn.trainer import make_chunk
from jaxdqn.types import ALONE, Array, Collectives, Hyper, Metrics, PyTree, Row, Trainer, TrainState

DEVICE_AXIS = "devices"


def device_collectives(size: int, *, deterministic: bool = False) -> Collectives:
    """Return the collectives of a trainer that ``across_devices`` will map over ``size``.

    Args:
      size: D
      deterministic: average by gathering and then adding up in the order of the
        devices: the same to the bit however they are divided over processes, at D
        times the bytes received.
    """
    if size == 1:
        return ALONE

    def mean_in_order(tree: PyTree) -> PyTree:
        gathered = jax.lax.all_gather(tree, DEVICE_AXIS)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gathered)

    def mean(tree: PyTree) -> PyTree:
        return jax.lax.pmean(tree, DEVICE_AXIS)

    return Collectives(
        mean=mean_in_order if deterministic else mean,
        sum=lambda tree: jax.lax.psum(tree, DEVICE_AXIS),
        max=lambda tree: jax.lax.pmax(tree, DEVICE_AXIS),
        index=lambda: jax.lax.axis_index(DEVICE_AXIS),
        size=size,
    )


def across_devices(trainer: Trainer, devices: Sequence[jax.Device]) -> Trainer:
    """Spread a trainer over devices by ``jax.shard_map``.

    Every leaf of the state gains a leading axis [D], one slice on each device;
    parameters, optimiser state and counters hold the same in each. Metrics are
    over all devices and gain no axis.

    Args:
      trainer: made with ``device_collectives(len(devices))``.
      devices: D distinct devices.
    """
    mesh = Mesh(np.asarray(devices), (DEVICE_AXIS,))
    split, whole = PartitionSpec(DEVICE_AXIS), PartitionSpec()

    def sharded(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        # The replication checker cannot see that pmean makes outputs equal inside a scan.
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def init(key: Array, hyper: Hyper | None = None) -> TrainState:
        def body(key: Array, hyper: PyTree) -> TrainState:
            return _add_axis(trainer.init(key, hyper))

        return sharded(body, (whole, whole), split)(key, hyper)

    def preload(key: Array, rows: Row, hyper: Hyper | None = None) -> TrainState:
        def body(key: Array, rows: Row, hyper: PyTree) -> TrainState:
            return _add_axis(trainer.preload(key, rows, hyper))

        # The environments are divided over the devices: axis 2 of [I, K, E].
        by_env = PartitionSpec(None, None, DEVICE_AXIS)
        return sharded(body, (whole, by_env, whole), split)(key, rows, hyper)

    def refill(state: TrainState) -> TrainState:
        def body(state: TrainState) -> TrainState:
            return _add_axis(trainer.refill(_drop_axis(state)))

        return sharded(body, (split,), split)(state)

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        def body(state: TrainState) -> tuple[TrainState, Metrics]:
            state, metrics = trainer.step(_drop_axis(state))
            return _add_axis(state), metrics

        return sharded(body, (split,), (split, whole))(state)

    def chunk(iterations: int) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        inner = make_chunk(trainer, iterations)

        def body(state: TrainState) -> tuple[TrainState, Metrics]:
            state, metrics = inner(_drop_axis(state))
            return _add_axis(state), metrics

        return sharded(body, (split,), (split, whole))

    return trainer._replace(init=init, step=step, refill=refill, preload=preload, chunk=chunk)


def state_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """Return how ``across_devices`` lays out every leaf of the state."""
    return NamedSharding(Mesh(np.asarray(devices), (DEVICE_AXIS,)), PartitionSpec(DEVICE_AXIS))


def _add_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)


def _drop_axis(tree: PyTree) -> PyTree:
    # Not leaf[0], a dynamic slice, which would copy the ring.
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), tree)
