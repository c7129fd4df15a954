"""Data parallelism: the same step on every device, with averaged gradients or parameters."""

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

SHARDED = PartitionSpec(DEVICE_AXIS)
"""Layout of an array with a leading axis [D], one slice on each device."""

REPLICATED = PartitionSpec()
"""Layout of an array that every device holds in full."""


def across_devices(
    trainer: Trainer,
    devices: Sequence[jax.Device],
    *,
    mapping: Literal["shard_map", "pmap"] = "shard_map",
) -> Trainer:
    """Map a trainer over devices, each with separate environments and replay.

    Every leaf of the state gains a leading axis [D], with one slice on each device. The slices of
    the parameters, the optimiser state and the counters are equal, apart from the residuals of
    compression. With ``average_every``, the slices of the parameters are equal only after an
    averaging, and those of the moments only with ``average_moments``. Metrics are reduced over all
    devices and gain no axis. Both mappings run the same body on a state of the same layout, so
    their results are bitwise identical.

    Args:
      trainer: an unmapped trainer made with ``device_collectives(len(devices))``.
      devices: D distinct devices.
      mapping: ``shard_map`` is JAX's standard mapping. ``pmap`` is the older interface,
        which JAX now builds on ``shard_map``; it is offered for comparison.

    Raises:
      ValueError: if the devices are not distinct, ``mapping`` is unknown, or the trainer is mapped
        or was made for another number of replicas.
    """
    mapped = mapping_over(trainer, devices, mapping)

    def sharding(state: PyTree) -> PyTree:
        return jax.tree.map(lambda _: state_sharding(devices), state)

    return map_trainer(trainer, mapped, len(devices))._replace(sharding=sharding)


def mapping_over(
    trainer: Any, devices: Sequence[jax.Device], mapping: str
) -> Callable[..., Callable[..., Any]]:
    """Return ``mapped(function, in_specs, out_specs)`` over devices, for a trainer's functions.

    Raises:
      ValueError: as ``across_devices``.
    """
    check_distinct(devices)
    if mapping not in ("shard_map", "pmap"):
        raise ValueError(f"mapping={mapping!r}: must be one of shard_map, pmap")
    check_replicas(trainer, len(devices))
    if mapping == "pmap":
        return _pmapped(devices)
    return partial(shard_mapped, _mesh(devices))


def check_distinct(devices: Sequence[jax.Device]) -> None:
    """Check that there is at least one device and that no device is duplicated.

    Raises:
      ValueError: if there is none, or one occurs more than once.
    """
    if len(set(devices)) != len(devices) or not devices:
        raise ValueError(f"devices={list(devices)}: must be one or more distinct devices")


def check_replicas(trainer: Any, replicas: int, model_devices: int = 1) -> None:
    """Check that a trainer is unmapped and was made for this number of replicas.

    A trainer made for a different number would run, but its replicas would not average their
    gradients, or would divide the environments and the batch incorrectly.

    Raises:
      ValueError: if the trainer is mapped or was made for another number.
    """
    if trainer.mapped:
        raise ValueError("trainer.mapped=True: must be False, as make_trainer makes it")
    if trainer.replicas != replicas:
        config = f"devices={replicas * model_devices}"
        if model_devices > 1:
            config += f", model_devices={model_devices}"
        collectives = f", collectives=device_collectives({replicas})" if replicas > 1 else ""
        raise ValueError(
            f"trainer.replicas={trainer.replicas}: must be {replicas}, the number of replicas it "
            f"is mapped over; make it by make_trainer(config{collectives}) with Config({config})"
        )


def map_trainer(trainer: Trainer, mapped: Callable[..., Callable[..., Any]], size: int) -> Trainer:
    """Map each function of a trainer over replicas.

    Args:
      trainer: the trainer of one replica.
      mapped: ``mapped(function, in_specs, out_specs)``. The specs give the layout of each argument
        and result; ``SHARDED`` arrays have a leading axis [D] outside the mapping.
      size: D, number of replicas.
    """

    def init(key: Array, hyper: Hyper | None = None) -> TrainState:
        return mapped(trainer.init, (REPLICATED, REPLICATED), SHARDED)(key, hyper)

    def preload(key: Array, rows: Row, hyper: Hyper | None = None) -> TrainState:
        # The environments are divided over the devices, [I, K, E] -> [D, I, K, E/D].
        def divide(leaf: Array) -> Array:
            parts = leaf.reshape(*leaf.shape[:2], size, -1, *leaf.shape[3:])
            return jnp.moveaxis(parts, 2, 0)

        divided = jax.tree.map(divide, rows)
        specs = (REPLICATED, SHARDED, REPLICATED)
        return mapped(trainer.preload, specs, SHARDED)(key, divided, hyper)

    def chunk(iterations: int) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        # The scan runs inside the mapping: a scan over a mapped step copies the ring.
        run = trainer.chunk(iterations)
        looped = single_pass_loop(run) if iterations == 1 else run
        return mapped(looped, (SHARDED,), (SHARDED, REPLICATED))

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        looped = single_pass_loop(trainer.step)
        return mapped(looped, (SHARDED,), (SHARDED, REPLICATED))(state)

    return trainer._replace(
        init=init,
        step=step,
        refill=lambda state: mapped(trainer.refill, (SHARDED,), SHARDED)(state),
        preload=preload,
        chunk=chunk,
        params=lambda state: first_replica(state.agent.params),
        # The counters are equal on all replicas.
        counters=lambda state: jax.tree.map(lambda leaf: leaf[0], state.counters),
        mapped=True,
    )


def single_pass_loop(
    function: Callable[[TrainState], tuple[TrainState, Metrics]],
) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
    """Wrap a function in a loop of one pass that the compiler does not remove.

    Without such a loop, XLA copies each array of the ring several times if the step removes and
    adds an axis of length 1, or takes slices of larger arrays (XLA:CPU, JAX 0.10 and 0.11).
    """

    def looped(state: TrainState) -> tuple[TrainState, Metrics]:
        shapes = jax.eval_shape(function, state)[1]
        metrics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        # The compiler removes a loop with a constant trip count of 1; the barrier hides the
        # constant.
        passes = jax.lax.optimization_barrier(jnp.int32(1))
        _, state, metrics = jax.lax.while_loop(
            lambda carry: carry[0] < passes,
            lambda carry: (carry[0] + 1, *function(carry[1])),
            (jnp.int32(0), state, metrics),
        )
        return state, metrics

    return looped


def state_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """Return the sharding that ``across_devices`` gives every leaf of the state."""
    return NamedSharding(_mesh(devices), SHARDED)


def first_replica(tree: PyTree) -> PyTree:
    """Return the slices of leaves [D, ...] on this process's first device, without a transfer.

    Given shapes, return the shapes of the slices.
    """

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return leaf.addressable_shards[0].data[0]

    return jax.tree.map(of_leaf, tree)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.asarray(devices), (DEVICE_AXIS,))


def shard_mapped(
    mesh: Mesh,
    function: Callable[..., Any],
    in_specs: tuple[PartitionSpec, ...],
    out_specs: Any,
) -> Callable[..., Any]:
    """Map a function of one replica over the axis ``DEVICE_AXIS`` of a mesh.

    ``SHARDED`` arrays have a leading axis [D] outside the mapping. The compiler handles
    the other axes of the mesh.
    """

    def body(*arguments: PyTree) -> PyTree:
        local = [
            _drop_axis(argument) if spec == SHARDED else argument
            for argument, spec in zip(arguments, in_specs, strict=True)
        ]
        results = function(*local)
        if isinstance(out_specs, PartitionSpec):
            return _add_axis(results) if out_specs == SHARDED else results
        return tuple(
            _add_axis(result) if spec == SHARDED else result
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


def _pmapped(devices: Sequence[jax.Device]) -> Callable[..., Callable[..., Any]]:
    """Return the counterpart of ``shard_mapped`` by ``jax.pmap``."""

    def axes(specs: Any) -> Any:
        if isinstance(specs, PartitionSpec):
            return 0 if specs == SHARDED else None
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
        # pmap needs at least one mapped argument. Jitting the pmapped function directly drops
        # buffer donation, hence the wrapper.
        indices = jnp.arange(len(devices), dtype=jnp.int32)
        return lambda *arguments: by_pmap(indices, *arguments)

    return mapped


def _add_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)


def _drop_axis(tree: PyTree) -> PyTree:
    # leaf[0] would be a dynamic slice, which copies the ring.
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), tree)
