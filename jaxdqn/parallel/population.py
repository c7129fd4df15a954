"""Populations: many independent learners in one program, on one device or on several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdqn.parallel.data_parallel import in_a_loop
from jaxdqn.types import Array, Hyper, Metrics, PyTree, Row, Trainer, TrainState

LEARNER_AXIS = "learners"

_Lift = Callable[[Callable[..., Any]], Callable[..., Any]]


def population(
    trainer: Trainer,
    size: int,
    *,
    devices: Sequence[jax.Device] = (),
    how: Literal["auto", "vmap", "map"] = "auto",
) -> Trainer:
    """Make a trainer of ``size`` independent learners: nothing passes between them.

    ``init`` takes a key for each learner, [P], and, where they differ,
    hyper-parameters with leaves [P]. Every leaf of the state and of the metrics
    gains a leading axis [P].

    Args:
      trainer: of one learner, made without collectives and not mapped yet.
      size: P, over all devices.
      devices: D, among which the learners are divided; the default device alone if
        there are none.
      how: ``vmap`` steps a device's learners together, in operations P/D times as
        large, and writes their rings in place; ``map`` runs them one after the other,
        chunk by chunk, each to the bit as if alone, and needs room for one learner's
        state more. ``auto`` takes ``vmap`` on accelerators and ``map`` on CPU, where
        wider operations bring little: of 16 learners (MLP 120-84, B=128) on one thread
        ``vmap`` takes 0.87 times the gradient steps/s of one after the other, ``map``
        1.03 times, and ``map`` over 2 virtual devices 1.91 times (docs/sharing.md).

    Raises:
      ValueError: naming the argument, its value and what would be right; ``init``,
        if what it is given is not of P learners.
    """
    count = max(1, len(devices))
    if trainer.mapped:
        raise ValueError(
            "trainer.mapped=True: must be False, of one learner as make_trainer makes it"
        )
    if trainer.replicas > 1:
        raise ValueError(
            f"trainer.replicas={trainer.replicas}: must be 1, for learners do not speak to each "
            "other; make it by make_trainer(config) with Config(devices=1)"
        )
    if len(set(devices)) != len(devices):
        raise ValueError(f"devices={list(devices)}: must be distinct")
    if size < 1 or size % count:
        raise ValueError(f"size={size}: must be a multiple of the {count} devices")
    if how not in ("auto", "vmap", "map"):
        raise ValueError(f"how={how!r}: must be one of auto, vmap, map")
    if how == "auto":
        platform = devices[0].platform if devices else jax.default_backend()
        how = "map" if platform == "cpu" else "vmap"
    over_inputs: _Lift = _one_after_another if how == "map" else jax.vmap
    over_states: _Lift = _one_state_after_another if how == "map" else jax.vmap
    sharding = (
        NamedSharding(Mesh(np.asarray(devices), (LEARNER_AXIS,)), _SPLIT) if devices else None
    )

    def over_devices(mapped: Callable[..., Any]) -> Callable[..., Any]:
        if sharding is None:
            return mapped
        return jax.shard_map(
            mapped, mesh=sharding.mesh, in_specs=_SPLIT, out_specs=_SPLIT, check_vma=False
        )

    def over_learners(function: Callable[..., Any]) -> Callable[..., Any]:
        return over_devices(over_inputs(function))

    def begin(function: Callable[..., TrainState], **given: PyTree) -> TrainState:
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            _check_of_each(name, value, size)
        return over_learners(function)(*given.values())

    def init(key: Array, hyper: Hyper | None = None) -> TrainState:
        return begin(trainer.init, key=key, hyper=hyper)

    def preload(key: Array, rows: Row, hyper: Hyper | None = None) -> TrainState:
        return begin(trainer.preload, key=key, rows=rows, hyper=hyper)

    def over_params(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, key, count: over_learners(function)(
            params, key, jnp.full(key.shape, count)
        )

    def chunk(iterations: int) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        run = trainer.chunk(iterations)
        looped = how == "map" and iterations == 1
        return over_devices(over_states(in_a_loop(run) if looped else run))

    return trainer._replace(
        init=init,
        step=over_devices(over_states(in_a_loop(trainer.step) if how == "map" else trainer.step)),
        refill=over_learners(trainer.refill),
        preload=preload,
        chunk=chunk,
        sharding=None
        if sharding is None
        else lambda state: jax.tree.map(lambda _: sharding, state),
        over_params=over_params,
        mapped=True,
    )


_SPLIT = PartitionSpec(LEARNER_AXIS)


def _check_of_each(name: str, tree: PyTree, size: int) -> None:
    for leaf in jax.tree.leaves(tree):
        if leaf.ndim == 0 or leaf.shape[0] != size:
            raise ValueError(
                f"{name}: must have a leading axis of the {size} learners, not {leaf.shape}"
            )


def _one_after_another(function: Callable[..., Any]) -> Callable[..., Any]:
    """Map over the leading axis of all arguments, one slice at a time."""
    return lambda *arguments: jax.lax.map(lambda slices: function(*slices), arguments)


def _one_state_after_another(
    function: Callable[[TrainState], tuple[TrainState, Metrics]],
) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
    """Map over learners, each one's new state written where its old one was.

    ``lax.map`` would hold all of both at once.
    """

    def one(states: TrainState, index: Array) -> tuple[TrainState, Metrics]:
        state = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), states
        )
        state, metrics = function(state)
        states = jax.tree.map(
            lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, index, 0),
            states,
            state,
        )
        return states, metrics

    def mapped(states: TrainState) -> tuple[TrainState, Metrics]:
        size = jax.tree.leaves(states)[0].shape[0]
        return jax.lax.scan(one, states, jnp.arange(size, dtype=jnp.int32))

    return mapped
