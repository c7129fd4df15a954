"""Model parallelism: the wide layers of each replica sharded over several devices.

The mesh has two axes. The step is mapped explicitly over the data axis, as in ``across_devices``.
The compiler handles the model axis: from the shardings of parameters and activations GSPMD (Xu et
al. 2021) derives the all-reduces that the network needs. The layout of the layers is Megatron's
(Shoeybi et al. 2019, section 3).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdqn.communication.collectives import DEVICE_AXIS
from jaxdqn.parallel.data_parallel import (
    REPLICATED,
    check_distinct,
    check_replicas,
    map_trainer,
    shard_mapped,
)
from jaxdqn.tree import is_small, pack
from jaxdqn.types import (
    Array,
    Network,
    NormalizedParams,
    Params,
    PyTree,
    QOutput,
    Trainer,
    TrainState,
    trained_params,
)

MODEL_AXIS = "model"
MIN_SPLIT_WIDTH = 512
"""Minimum length of a sharded side of a matrix; with shorter sides the products are too small."""


def across_mesh(trainer: Trainer, devices: Sequence[jax.Device], model_devices: int) -> Trainer:
    """Map a trainer over replicas and shard the wide layers of each replica over its devices.

    Every leaf of the state gains a leading axis [D]. The layers that ``layer_specs`` selects are
    sharded in the parameters, the target network and the optimiser's moments. Everything else is
    replicated: all devices of a replica hold the same acting state and replay.

    Args:
      trainer: an unmapped trainer made with ``device_collectives(D)`` and with
        ``split_network`` as ``around_network``.
      devices: D * ``model_devices`` distinct devices. The devices of one replica are contiguous,
        because they communicate several times in each step.
      model_devices: number of devices per replica, at least 2.

    Raises:
      ValueError: if the devices do not form a mesh, the trainer does not fit them, or no layer is
        wide enough to be sharded.
    """
    _check_mesh_devices(devices, model_devices)
    replicas = len(devices) // model_devices
    check_replicas(trainer, replicas, model_devices)
    mesh = Mesh(np.asarray(devices).reshape(replicas, model_devices), (DEVICE_AXIS, MODEL_AXIS))

    def sharding(state: TrainState) -> PyTree:
        return jax.tree.map(
            lambda spec: NamedSharding(mesh, PartitionSpec(DEVICE_AXIS, *spec)),
            state_specs(_replica_shapes(state), model_devices),
        )

    constrained = _constrain_states(trainer, model_devices)
    mapped = map_trainer(constrained, partial(shard_mapped, mesh), replicas)
    state = _replica_shapes(jax.eval_shape(mapped.init, jax.random.key(0)))
    if not any(jax.tree.leaves(layer_specs(state.agent.params, model_devices))):
        raise ValueError(
            f"model_devices={model_devices}: must be 1 unless the network has a matrix of more "
            f"than 16,384 elements with a side of at least {MIN_SPLIT_WIDTH} divisible by it (as "
            "with hidden_sizes=4096,4096); there is nothing to split"
        )

    def over_params(function: Callable[..., Any]) -> Callable[..., Any]:
        def lifted(*arguments: Any) -> Any:
            in_specs = (REPLICATED,) * len(arguments)
            replica_mesh = _first_replica_mesh(mesh)
            return shard_mapped(replica_mesh, function, in_specs, REPLICATED)(*arguments)

        return lifted

    return mapped._replace(
        sharding=sharding,
        params=lambda state: first_sharded_replica(state.agent.params),
        over_params=over_params,
    )


def _check_mesh_devices(devices: Sequence[jax.Device], model_devices: int) -> None:
    check_distinct(devices)
    if model_devices < 2 or len(devices) % model_devices:
        raise ValueError(
            f"model_devices={model_devices}: must be at least 2 and a divisor of the "
            f"{len(devices)} devices"
        )
    for first in range(0, len(devices), model_devices):
        if len({device.process_index for device in devices[first : first + model_devices]}) > 1:
            raise ValueError(
                f"model_devices={model_devices}: must be a divisor of the devices of each process"
            )


def _constrain_states(trainer: Trainer, model_devices: int) -> Trainer:
    """Constrain the sharding of every state that a trainer's functions take or return."""

    def constrained(state: TrainState) -> TrainState:
        return jax.lax.with_sharding_constraint(state, state_specs(state, model_devices))

    def constraining(function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function that returns a state, or a pair of a state and another value."""

        def wrapped(first: Any, *others: Any) -> Any:
            first = constrained(first) if isinstance(first, TrainState) else first
            results = function(first, *others)
            if isinstance(results, TrainState):
                return constrained(results)
            return constrained(results[0]), results[1]

        return wrapped

    return trainer._replace(
        init=constraining(trainer.init),
        step=constraining(trainer.step),
        refill=constraining(trainer.refill),
        preload=constraining(trainer.preload),
        chunk=lambda iterations: constraining(trainer.chunk(iterations)),
    )


def split_network(network: Network, model_devices: int) -> Network:
    """Return the network with sharding constraints for the model axis of its mesh.

    The wide layers are sharded. The inputs and outputs are replicated, and therefore so are the
    gradients of the outputs. If only the layers had constraints, the compiler would also divide
    the computation around the network. Outside a mesh the network is unchanged.
    """

    def init(key: Array, obs: Array) -> Params:
        params = network.init(key, obs)
        return _constrain(params, layer_specs(params, model_devices))

    def constraining(function: Callable[..., Any]) -> Callable[..., tuple[QOutput, PyTree]]:
        """Wrap ``apply`` or ``unroll``."""

        def constrained(
            params: Params, key: Array, carry: PyTree, obs: Array, first: Array
        ) -> tuple[QOutput, PyTree]:
            params = _constrain(params, layer_specs(params, model_devices))
            obs, carry = _constrain((obs, carry), REPLICATED)
            return _constrain(function(params, key, carry, obs, first), REPLICATED)

        return constrained

    return network._replace(
        init=init,
        apply=constraining(network.apply),
        unroll=None if network.unroll is None else constraining(network.unroll),
    )


def layer_specs(params: Params, model_devices: int) -> PyTree:
    """Return the ``PartitionSpec`` over ``MODEL_AXIS`` of each parameter.

    The sharded parameters are matrices [in, out] of more than 16 384 elements, which ``pack_small``
    does not pack. The sharded side has at least ``MIN_SPLIT_WIDTH`` elements and is divisible by
    ``model_devices``.

    The matrices are visited in the order of their paths, with the ``head`` of a network last. The
    first layer is sharded by columns, [in, out/M], which also shards its output. The next layer is
    sharded by rows, [in/M, out]: each device multiplies its part, and one all-reduce sums the
    products. If the preferred side is too short or not divisible, the other side is sharded.
    Further matrices of a layer, such as the sigmas of its noise, are sharded like its first matrix.
    All other parameters are replicated: convolutions, biases, small matrices.
    """
    if isinstance(params, NormalizedParams):
        network = layer_specs(params.network, model_devices)
        return NormalizedParams(network, jax.tree.map(_replicated, params.observations))
    named = jax.tree.leaves_with_path(params)
    structure = jax.tree.structure(params)
    specs, input_is_sharded = [REPLICATED] * len(named), False
    by_layer: dict[Any, PartitionSpec] = {}
    for index in sorted(range(len(named)), key=lambda index: _layer_order(named[index][0])):
        path, leaf = named[index]
        if leaf.ndim != 2 or is_small(leaf):
            continue
        if path[:-1] in by_layer:
            specs[index] = by_layer[path[:-1]]
            continue
        for side in (0, 1) if input_is_sharded else (1, 0):
            if leaf.shape[side] >= MIN_SPLIT_WIDTH and leaf.shape[side] % model_devices == 0:
                specs[index] = PartitionSpec(*[None] * side, MODEL_AXIS)
                input_is_sharded = side == 1
                break
        by_layer[path[:-1]] = specs[index]
    return jax.tree.unflatten(structure, specs)


def state_specs(state: TrainState, model_devices: int) -> TrainState:
    """Return the ``PartitionSpec`` over ``MODEL_AXIS`` of each leaf of one replica's state.

    Optimiser moments are sharded like the parameters. They are recognised as the subtrees of the
    optimiser state that have the structure and shapes of the parameters or of ``pack(params)``.
    """
    params = state.agent.params
    specs = layer_specs(params, model_devices)
    trained, trained_specs = trained_params(params), trained_params(specs)
    packed = jax.eval_shape(pack, trained)
    large = [
        spec
        for leaf, spec in zip(jax.tree.leaves(trained), jax.tree.leaves(trained_specs), strict=True)
        if not is_small(leaf)
    ]
    packed_specs = {"small": jax.tree.map(_replicated, packed["small"]), "large": large}
    known = (
        (_structure_and_shapes(trained), trained_specs),
        (_structure_and_shapes(packed), packed_specs),
    )

    def specs_of(tree: PyTree) -> PyTree | None:
        form = _structure_and_shapes(tree)
        return next((specs for known_form, specs in known if known_form == form), None)

    moments = jax.tree.map(
        lambda tree: specs_of(tree) or _replicated(tree),
        state.agent.opt_state,
        is_leaf=lambda tree: specs_of(tree) is not None,
    )
    replicated = jax.tree.map(_replicated, state)
    target = specs if jax.tree.leaves(state.agent.target_params) else ()
    agent = replicated.agent._replace(params=specs, target_params=target, opt_state=moments)
    return replicated._replace(agent=agent)


def first_sharded_replica(tree: PyTree) -> PyTree:
    """Return this process's first replica of leaves [D, ...], still sharded over its devices.

    Given shapes with shardings, return the shapes of the replica.
    """

    def of_leaf(leaf: Any) -> Any:
        sharding = _replica_sharding(leaf.sharding)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)
        parts = {shard.device: shard.data for shard in leaf.addressable_shards}
        arrays = [parts[device][0] for device in sharding.mesh.devices.flat]
        return jax.make_array_from_single_device_arrays(leaf.shape[1:], sharding, arrays)

    return jax.tree.map(of_leaf, tree)


def _replica_sharding(sharding: Any) -> NamedSharding:
    """Return the sharding of this process's first replica of a leaf [D, ...], without axis [D]."""
    mesh = _first_replica_mesh(sharding.mesh)
    return NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))


def _first_replica_mesh(mesh: Mesh) -> Mesh:
    """Return the submesh [1, M] with this process's first replica."""
    here = jax.process_index()
    row = next(row for row in mesh.devices if all(device.process_index == here for device in row))
    return Mesh(row[None], mesh.axis_names)


def _constrain(tree: PyTree, specs: PyTree) -> PyTree:
    if MODEL_AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return tree
    return jax.lax.with_sharding_constraint(tree, specs)


def _replica_shapes(state: PyTree) -> PyTree:
    """Return the shapes of one replica's state."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state)


def _replicated(_: Any) -> PartitionSpec:
    return REPLICATED


def _structure_and_shapes(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [getattr(leaf, "shape", None) for leaf in leaves]


def _layer_order(path: Any) -> Any:
    """Return a sort key that orders parameters by layer: ``Dense_2`` before ``Dense_10``."""
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    parts = [re.split(r"(\d+)", name) for name in names]
    natural = [
        [(int(part), "") if part.isdigit() else (-1, part) for part in name] for name in parts
    ]
    return "head" in names, natural
