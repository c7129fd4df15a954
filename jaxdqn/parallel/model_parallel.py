"""Model parallelism: the wide layers of each replica split over several devices.

The mesh has two axes. Over the data axis the step is mapped by hand, as
``across_devices`` does. The model axis is left to the compiler, which is told
where parameters and activations lie and puts in the all-reduces that the network
then needs (Megatron's layout, Shoeybi et al. 2019, section 3, found by GSPMD,
Xu et al. 2021).
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
    WHOLE,
    by_shard_map,
    check_distinct,
    check_made_for,
    spread,
)
from jaxdqn.tree import is_small, pack
from jaxdqn.types import Array, Network, Params, PyTree, QOutput, Trainer, TrainState

MODEL_AXIS = "model"
SPLIT_WIDTH = 512
"""The shortest side of a matrix that is split: each device's part of a product stays large."""


def across_mesh(trainer: Trainer, devices: Sequence[jax.Device], model_devices: int) -> Trainer:
    """Spread a trainer over replicas, and the wide layers of each over its devices.

    Every leaf of the state gains a leading axis [D]. The layers that ``layer_specs``
    names are split in the parameters, the target network and the optimiser's
    moments; everything else is the same on all devices of a replica, which act and
    remember alike.

    Args:
      trainer: made with ``device_collectives(D)`` and, as ``around_network``,
        ``split_network``, and not mapped yet.
      devices: D * ``model_devices`` distinct ones. Those of a replica stand together:
        they speak several times a step.
      model_devices: devices of a replica, at least 2.

    Raises:
      ValueError: naming the argument, its value and what would be right; also if no
        layer is wide enough to be split.
    """
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
    check_made_for(trainer, len(devices) // model_devices, model_devices)
    mesh = Mesh(np.asarray(devices).reshape(-1, model_devices), (DEVICE_AXIS, MODEL_AXIS))

    def pinned(state: TrainState) -> TrainState:
        return jax.lax.with_sharding_constraint(state, state_specs(state, model_devices))

    def pinning(function: Callable[..., Any]) -> Callable[..., Any]:
        """Pin the state that a function gives, alone or first of a pair, and one it takes."""

        def with_pins(first: Any, *others: Any) -> Any:
            results = function(pinned(first) if isinstance(first, TrainState) else first, *others)
            if isinstance(results, TrainState):
                return pinned(results)
            return pinned(results[0]), results[1]

        return with_pins

    def sharding(state: TrainState) -> PyTree:
        return jax.tree.map(
            lambda spec: NamedSharding(mesh, PartitionSpec(DEVICE_AXIS, *spec)),
            state_specs(_inside(state), model_devices),
        )

    one = trainer._replace(
        init=pinning(trainer.init),
        step=pinning(trainer.step),
        refill=pinning(trainer.refill),
        preload=pinning(trainer.preload),
        chunk=lambda iterations: pinning(trainer.chunk(iterations)),
    )
    mapped = spread(one, partial(by_shard_map, mesh), len(devices) // model_devices)
    state = _inside(jax.eval_shape(mapped.init, jax.random.key(0)))
    if not any(jax.tree.leaves(layer_specs(state.agent.params, model_devices))):
        raise ValueError(
            f"model_devices={model_devices}: must be 1 unless the network has a matrix of more "
            f"than 16,384 elements with a side of at least {SPLIT_WIDTH} that divides (as "
            "hidden_sizes=4096,4096); there is nothing to split"
        )

    def over_params(function: Callable[..., Any]) -> Callable[..., Any]:
        within = _first_replica_mesh(mesh)
        return lambda *arguments: by_shard_map(within, function, (WHOLE,) * len(arguments), WHOLE)(
            *arguments
        )

    return mapped._replace(
        sharding=sharding,
        params=lambda state: first_split_replica(state.agent.params),
        over_params=over_params,
    )


def split_network(network: Network, model_devices: int) -> Network:
    """Make a network that says how it lies on the model axis of the mesh it runs on.

    The wide layers are split, what goes in and what comes out is whole; so are
    gradients, and nothing around the network is divided by a compiler that was told
    of the layers alone. Off the mesh it is the network as it was.
    """

    def init(key: Array, obs: Array) -> Params:
        params = network.init(key, obs)
        return _constrain(params, layer_specs(params, model_devices))

    def apply(
        params: Params, key: Array, carry: PyTree, obs: Array, first: Array
    ) -> tuple[QOutput, PyTree]:
        params = _constrain(params, layer_specs(params, model_devices))
        obs, carry = _constrain((obs, carry), WHOLE)
        return _constrain(network.apply(params, key, carry, obs, first), WHOLE)

    return network._replace(init=init, apply=apply)


def layer_specs(params: Params, model_devices: int) -> PyTree:
    """Return the ``PartitionSpec`` over ``MODEL_AXIS`` of each parameter.

    Split are the matrices [in, out] that ``pack_small`` leaves apart, above 16 384
    elements, on a side of at least ``SPLIT_WIDTH`` that divides. They are taken in the
    order of their paths, a network's ``head`` last. After a layer that was split by
    columns, whose output thus lies in parts, a layer is split by rows, so that each
    device takes in the part it has and only the products are added up; otherwise by
    columns; and where that side is too short by the other. Matrices of one layer (its
    noise) lie as the first. All else is whole: convolutions, biases, small matrices.
    """
    named = jax.tree.leaves_with_path(params)
    structure = jax.tree.structure(params)
    specs, in_parts = [WHOLE] * len(named), False
    by_layer: dict[Any, PartitionSpec] = {}
    for index in sorted(range(len(named)), key=lambda index: _place(named[index][0])):
        path, leaf = named[index]
        if leaf.ndim != 2 or is_small(leaf):
            continue
        if path[:-1] in by_layer:
            specs[index] = by_layer[path[:-1]]
            continue
        for side in (0, 1) if in_parts else (1, 0):
            if leaf.shape[side] >= SPLIT_WIDTH and leaf.shape[side] % model_devices == 0:
                specs[index] = PartitionSpec(*[None] * side, MODEL_AXIS)
                in_parts = side == 1
                break
        by_layer[path[:-1]] = specs[index]
    return jax.tree.unflatten(structure, specs)


def state_specs(state: TrainState, model_devices: int) -> TrainState:
    """Return the ``PartitionSpec`` over ``MODEL_AXIS`` of each leaf of one replica's state.

    The optimiser's moments lie as the parameters do: whatever in its state has the
    structure and shapes of the parameters, or of what ``pack`` makes of them.
    """
    params = state.agent.params
    specs = layer_specs(params, model_devices)
    packed = jax.eval_shape(pack, params)
    large = [
        spec
        for leaf, spec in zip(jax.tree.leaves(params), jax.tree.leaves(specs), strict=True)
        if not is_small(leaf)
    ]
    alike = (
        (_form(params), specs),
        (_form(packed), {"small": jax.tree.map(_whole, packed["small"]), "large": large}),
    )

    def specs_of(tree: PyTree) -> PyTree | None:
        return next((specs for form, specs in alike if _form(tree) == form), None)

    moments = jax.tree.map(
        lambda tree: specs_of(tree) or _whole(tree),
        state.agent.opt_state,
        is_leaf=lambda tree: specs_of(tree) is not None,
    )
    whole = jax.tree.map(_whole, state)
    target = specs if jax.tree.leaves(state.agent.target_params) else ()
    agent = whole.agent._replace(params=specs, target_params=target, opt_state=moments)
    return whole._replace(agent=agent)


def first_split_replica(tree: PyTree) -> PyTree:
    """Return this process's first replica of leaves [D, ...], split over its devices as it is.

    Given shapes with shardings, return those of the replica.
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
    """Return how this process's first replica holds a leaf [D, ...], without the axis."""
    mesh = _first_replica_mesh(sharding.mesh)
    return NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))


def _first_replica_mesh(mesh: Mesh) -> Mesh:
    """Return the part of a mesh, [1, M], that holds this process's first replica."""
    here = jax.process_index()
    row = next(row for row in mesh.devices if all(device.process_index == here for device in row))
    return Mesh(row[None], mesh.axis_names)


def _constrain(tree: PyTree, specs: PyTree) -> PyTree:
    if MODEL_AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return tree
    return jax.lax.with_sharding_constraint(tree, specs)


def _inside(state: PyTree) -> PyTree:
    """Return the shapes of one replica's state."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state)


def _whole(_: Any) -> PartitionSpec:
    return WHOLE


def _form(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [getattr(leaf, "shape", None) for leaf in leaves]


def _place(path: Any) -> Any:
    """Return what sorts parameters as their layers follow: ``Dense_2`` before ``Dense_10``."""
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    parts = [re.split(r"(\d+)", name) for name in names]
    natural = [
        [(int(part), "") if part.isdigit() else (-1, part) for part in name] for name in parts
    ]
    return "head" in names, natural
