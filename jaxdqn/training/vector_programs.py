"""Compiled programs of a ``VectorTrainer``."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.vector_functions import played_shape
from jaxdqn.training.vector_trainer import VectorTrainer
from jaxdqn.types import PyTree, TrainState


class VectorPrograms(NamedTuple):
    """Compiled functions of a ``VectorTrainer``, which documents them.

    ``remember`` and ``learn`` donate the state.
    """

    init: Any
    start: Any
    keys: Any
    warm_up_keys: Any
    refill_keys: Any
    block: Any
    begin: Any
    advance: Any
    remember: Any
    empty_replay: Any
    learn: Any
    begin_chunk: Any
    summarize: Any


_DONATED: dict[str, Any] = {"remember": 0, "empty_replay": 0, "learn": (0, 1), "summarize": 0}
_COMMON_RESULTS = {"summarize": (1, 2)}
"""Indices of the results that a mapped function returns once for all replicas, without axis [D]."""

ACTING = ("begin", "advance")
"""Programs that run on the acting device."""

SELDOM = ("start", "refill_keys", "empty_replay")
"""Programs used only by a resumed run and therefore compiled at their first call."""


def jit_vector_programs(
    trainer: VectorTrainer, options: dict[str, Any] | None = None
) -> VectorPrograms:
    """Jit the functions of a trainer; each is compiled at its first call."""

    def jitted(name: str) -> Any:
        return jax.jit(
            getattr(trainer, name),
            donate_argnums=_DONATED.get(name, ()),
            compiler_options=options,
            out_shardings=_out_shardings(trainer, name),
        )

    return VectorPrograms(*map(jitted, VectorPrograms._fields))


def _out_shardings(trainer: VectorTrainer, name: str) -> Any:
    if trainer.sharding is None:
        return None
    sharded = trainer.sharding(0)
    common = NamedSharding(sharded.mesh, PartitionSpec())
    if name not in _COMMON_RESULTS:
        return sharded
    return tuple(common if index in _COMMON_RESULTS[name] else sharded for index in range(3))


def program_arguments(trainer: VectorTrainer, state: TrainState) -> VectorPrograms:
    """Return the argument shapes of each program, for compilation before the first call.

    Args:
      trainer: trainer of the run.
      state: shapes of the state.
    """

    def placed(shapes: PyTree) -> PyTree:
        if trainer.sharding is None:
            return shapes
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            trainer.sharding(shapes),
        )

    state = placed(state)
    actor, hyper, params = state.actor, state.hyper, state.agent.params
    key, rows, index = state.key, state.counters.rows, np.int32(0)
    run_key, run_hyper = jax.eval_shape(lambda: (jax.random.key(0), hyper_from(trainer.config)))
    blocks = placed(jax.eval_shape(trainer.warm_up_keys, run_key))
    keys = placed(jax.eval_shape(trainer.keys, key, hyper, rows))
    begin = (actor, keys.act, params)
    acting, extras = placed(jax.eval_shape(trainer.begin, *begin))
    length = trainer.config.rollout_length
    played = placed(played_shape(length, actor.timestep, acting, extras, mapped=trainer.mapped))
    total = placed(jax.eval_shape(trainer.begin_chunk, state)[-1])
    return VectorPrograms(
        init=(run_key, run_hyper, actor.timestep),
        start=(actor.timestep,),
        keys=(key, hyper, rows),
        warm_up_keys=(run_key,),
        refill_keys=(key,),
        block=(blocks, index, hyper, rows),
        begin=begin,
        advance=(acting, actor.timestep, keys.act, params),
        remember=(state, played),
        empty_replay=(state,),
        learn=(state, total, index, keys, played),
        begin_chunk=(state,),
        summarize=(state, total, index),
    )
