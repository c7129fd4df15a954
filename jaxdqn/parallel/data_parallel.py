"""Synchronous data parallelism: the same step on every device, gradients averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdqn.communication.collectives import DEVICE_AXIS
from jaxdqn.types import Array, Hyper, Metrics, PyTree, Row, Trainer, TrainState

SPLIT, WHOLE = PartitionSpec(DEVICE_AXIS), PartitionSpec()
"""How an array is laid out over devices: an axis [D], a slice on each, or the same on all."""


def across_devices(
    trainer: Trainer,
    devices: Sequence[jax.Device],
    *,
    mapping: Literal["shard_map", "pmap"] = "shard_map",
) -> Trainer:
    """Spread a trainer over devices: the same step on each, on its own environments and replay.

    Every leaf of the state gains a leading axis [D], one slice on each device;
    parameters, optimiser state and counters hold the same in each. Metrics are
    over all devices and gain no axis. Both mappings run the same body on a state
    of the same layout, and agree to the bit.

    Args:
      trainer: made with ``device_collectives(len(devices))``, and not mapped yet.
      devices: D distinct devices.
      mapping: ``shard_map`` is JAX's own way; ``pmap`` is built on it by now, and is
        here for those who compare.

    Raises:
      ValueError: naming the argument, its value and what would be right.
    """
    check_distinct(devices)
    if mapping not in ("shard_map", "pmap"):
        raise ValueError(f"mapping={mapping!r}: must be one of shard_map, pmap")
    check_made_for(trainer, len(devices))
    mapped = partial(by_shard_map, _mesh(devices)) if mapping == "shard_map" else _by_pmap(devices)

    def sharding(state: PyTree) -> PyTree:
        return jax.tree.map(lambda _: state_sharding(devices), state)

    return spread(trainer, mapped, len(devices))._replace(sharding=sharding)


def check_distinct(devices: Sequence[jax.Device]) -> None:
    """Refuse devices that are none, or the same twice.

    Raises:
      ValueError: if so.
    """
    if len(set(devices)) != len(devices) or not devices:
        raise ValueError(f"devices={list(devices)}: must be one or more distinct devices")


def check_made_for(trainer: Trainer, replicas: int, model_devices: int = 1) -> None:
    """Refuse a trainer that is mapped, or whose replicas are more or fewer than it will have.

    Raises:
      ValueError: if so. It would train all the same, but not what was asked for: replicas
        that were made alone never speak, and learn alike or apart.
    """
    if trainer.mapped:
        raise ValueError("trainer.mapped=True: must be False, as make_trainer makes it")
    if trainer.replicas != replicas:
        config = f"devices={replicas * model_devices}"
        if model_devices > 1:
            config += f", model_devices={model_devices}"
        collectives = f", collectives=device_collectives({replicas})" if replicas > 1 else ""
        raise ValueError(
            f"trainer.replicas={trainer.replicas}: must be {replicas}, as many as it is mapped "
            f"over; make it by make_trainer(config{collectives}) with Config({config})"
        )


def spread(trainer: Trainer, mapped: Callable[..., Callable[..., Any]], size: int) -> Trainer:
    """Map the functions of a trainer.

    Args:
      trainer: of one replica.
      mapped: ``mapped(function, in_specs, out_specs)``; the specs say of each argument
        and result whether it is split over replicas, with an axis [D] outside.
      size: D
    """

    def init(key: Array, hyper: Hyper | None = None) -> TrainState:
        return mapped(trainer.init, (WHOLE, WHOLE), SPLIT)(key, hyper)

    def preload(key: Array, rows: Row, hyper: Hyper | None = None) -> TrainState:
        # The environments are divided over the devices, [I, K, E] -> [D, I, K, E/D].
        def divide(leaf: Array) -> Array:
            parts = leaf.reshape(*leaf.shape[:2], size, -1, *leaf.shape[3:])
            return jnp.moveaxis(parts, 2, 0)

        divided = jax.tree.map(divide, rows)
        return mapped(trainer.preload, (WHOLE, SPLIT, WHOLE), SPLIT)(key, divided, hyper)

    def chunk(iterations: int) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        # The scan runs inside: one over a mapped step copies the ring.
        run = trainer.chunk(iterations)
        return mapped(in_a_loop(run) if iterations == 1 else run, (SPLIT,), (SPLIT, WHOLE))

    return trainer._replace(
        init=init,
        step=lambda state: mapped(in_a_loop(trainer.step), (SPLIT,), (SPLIT, WHOLE))(state),
        refill=lambda state: mapped(trainer.refill, (SPLIT,), SPLIT)(state),
        preload=preload,
        chunk=chunk,
        params=lambda state: first_replica(state.agent.params),
        # Equal on all replicas.
        counters=lambda state: jax.tree.map(lambda leaf: leaf[0], state.counters),
        mapped=True,
    )


def in_a_loop(
    function: Callable[[TrainState], tuple[TrainState, Metrics]],
) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
    """Call a function as the only pass of a loop that the compiler does not take away.

    Without a loop around it, a step on arrays whose axis [1] comes off and on, or which are
    slices of others, copies each array of the ring several times (XLA:CPU, JAX 0.10 and 0.11).
    """

    def looped(state: TrainState) -> tuple[TrainState, Metrics]:
        shapes = jax.eval_shape(function, state)[1]
        metrics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        passes = jax.lax.optimization_barrier(jnp.int32(1))  # or it would be seen to be one
        _, state, metrics = jax.lax.while_loop(
            lambda carry: carry[0] < passes,
            lambda carry: (carry[0] + 1, *function(carry[1])),
            (jnp.int32(0), state, metrics),
        )
        return state, metrics

    return looped


def state_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """Return how ``across_devices`` lays out every leaf of the state."""
    return NamedSharding(_mesh(devices), SPLIT)


def first_replica(tree: PyTree) -> PyTree:
    """Return the slice of leaves [D, ...] on the first device of this process; or its shapes."""

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return leaf.addressable_shards[0].data[0]

    return jax.tree.map(of_leaf, tree)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.asarray(devices), (DEVICE_AXIS,))


def by_shard_map(
    mesh: Mesh,
    function: Callable[..., Any],
    in_specs: tuple[PartitionSpec, ...],
    out_specs: Any,
) -> Callable[..., Any]:
    """Map a function of one replica's arrays over the mesh's ``DEVICE_AXIS``.

    Split arrays have an axis [D] outside of it. Other axes of the mesh are the compiler's.
    """

    def body(*arguments: PyTree) -> PyTree:
        inside = [
            _drop_axis(argument) if spec == SPLIT else argument
            for argument, spec in zip(arguments, in_specs, strict=True)
        ]
        results = function(*inside)
        if isinstance(out_specs, PartitionSpec):
            return _add_axis(results) if out_specs == SPLIT else results
        return tuple(
            _add_axis(result) if spec == SPLIT else result
            for result, spec in zip(results, out_specs, strict=True)
        )

    # The replication checker cannot see that pmean makes outputs equal inside a scan.
    return jax.shard_map(
        body,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={DEVICE_AXIS},
        check_vma=False,
    )


def _by_pmap(devices: Sequence[jax.Device]) -> Callable[..., Callable[..., Any]]:
    """Return what maps as ``by_shard_map`` does."""

    def axes(specs: Any) -> Any:
        if isinstance(specs, PartitionSpec):
            return 0 if specs == SPLIT else None
        return tuple(map(axes, specs))

    def mapped(
        function: Callable[..., Any], in_specs: tuple[PartitionSpec, ...], out_specs: Any
    ) -> Callable[..., Any]:
        by_pmap = jax.pmap(
            lambda _, *arguments: function(*arguments),
            axis_name=DEVICE_AXIS,
            devices=devices,
            in_axes=(0, *axes(in_specs)),
            out_axes=axes(out_specs),
        )
        # At least one argument must be split. And a function of its own: to jit the mapped one
        # is to lose the donation asked for.
        place = jnp.arange(len(devices), dtype=jnp.int32)
        return lambda *arguments: by_pmap(place, *arguments)

    return mapped


def _add_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)


def _drop_axis(tree: PyTree) -> PyTree:
    # Not leaf[0], a dynamic slice, which would copy the ring.
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), tree)
