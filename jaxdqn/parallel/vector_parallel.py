"""Data parallelism for a trainer with environments on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax

from jaxdqn.parallel.data_parallel import (
    REPLICATED,
    SHARDED,
    first_replica,
    mapping_over,
    state_sharding,
)
from jaxdqn.training.vector_functions import zero_time_step
from jaxdqn.training.vector_trainer import VectorTrainer
from jaxdqn.types import Array, Hyper, PyTree, TimeStep, TrainState

_SPECS: dict[str, tuple[Any, Any]] = {
    "start": ((SHARDED,), SHARDED),
    "keys": ((SHARDED,) * 3, SHARDED),
    "warm_up_keys": ((REPLICATED,), SHARDED),
    "refill_keys": ((SHARDED,), (SHARDED, SHARDED)),
    "block": ((SHARDED, REPLICATED, SHARDED, SHARDED), SHARDED),
    "begin": ((SHARDED,) * 3, (SHARDED, SHARDED)),
    "advance": ((SHARDED,) * 4, (SHARDED, SHARDED)),
    "remember": ((SHARDED, SHARDED), SHARDED),
    "empty_replay": ((SHARDED,), SHARDED),
    "learn": ((SHARDED, SHARDED, REPLICATED, SHARDED, SHARDED), (SHARDED,) * 3),
    "begin_chunk": ((SHARDED,), (SHARDED,) * 5),
    "summarize": ((SHARDED, SHARDED, REPLICATED), (SHARDED, REPLICATED, REPLICATED)),
}
"""Sharding layouts of the arguments and results of each function."""


def vector_across_devices(
    trainer: VectorTrainer,
    devices: Sequence[jax.Device],
    *,
    mapping: Literal["shard_map", "pmap"] = "shard_map",
) -> VectorTrainer:
    """Map a trainer over devices; the host steps the environments of all devices together.

    Each device acts for an equal part of the environments and stores their rows; gradients are
    all-reduced over the devices. The layout of the state is the same as with ``across_devices``.

    Args:
      trainer: an unmapped trainer made with ``device_collectives(len(devices))``.
      devices: D distinct devices.
      mapping: see ``across_devices``.

    Raises:
      ValueError: as ``across_devices``.
    """
    mapped = mapping_over(trainer, devices, mapping)
    size, config, environment = len(devices), trainer.config, trainer.environment

    def init(
        key: Array, hyper: Hyper | None = None, timestep: TimeStep | None = None
    ) -> TrainState:
        if timestep is None:
            timestep = jax.tree.map(
                lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]),
                zero_time_step(environment, config.num_envs),
            )
        return mapped(trainer.init, (REPLICATED, REPLICATED, SHARDED), SHARDED)(
            key, hyper, timestep
        )

    def sharding(state: PyTree) -> PyTree:
        return jax.tree.map(lambda _: state_sharding(devices), state)

    functions: dict[str, Any] = {
        name: mapped(getattr(trainer, name), *specs) for name, specs in _SPECS.items()
    }
    return trainer._replace(
        init=init,
        **functions,
        params=lambda state: first_replica(state.agent.params),
        # The counters are equal on all replicas.
        counters=lambda state: jax.tree.map(lambda leaf: leaf[0], state.counters),
        sharding=sharding,
        mapped=True,
    )
