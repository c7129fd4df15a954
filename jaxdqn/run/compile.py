"""The compiled programs of a run, and the trainer they are made from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdqn.config.config import Config
from jaxdqn.parallel.learners import RunKeys, learner_hypers
from jaxdqn.parallel.model_parallel import on_replica, replica_shape
from jaxdqn.parallel.sharded_transfer import broadcast_sharded
from jaxdqn.storage.state import lacks_replay, restore_keys, snapshot_key_data, without_replay
from jaxdqn.training.evaluation import EvalInfo, make_evaluator
from jaxdqn.types import Array, Counters, Metrics, Params, PyTree, Row, Trainer, TrainState


class Programs(NamedTuple):
    """What the host calls. The first block is compiled ahead, so that no clock measures it."""

    init: Callable[[Array], TrainState]
    chunk: Callable[[TrainState], tuple[TrainState, tuple[Metrics, Counters]]]
    """Donates the state; the counters are those of the new state."""
    evaluate: Callable[[Params, Array, np.int32], EvalInfo]
    """``evaluate(params, key, count)``; consumes ``key`` folded with ``count``. Of a population
    leaves [P], and so are the results."""
    copy: Callable[[Params], Params]
    snapshot: Callable[[TrainState], PyTree]
    """A copy of the state, keys as words."""

    revive: Callable[[PyTree], TrainState]
    """The state of a snapshot's words."""
    evaluate_one: Callable[[Params, Array, np.int32], EvalInfo]
    """As ``evaluate``, of one learner whatever the population."""
    refill: Callable[[TrainState], TrainState]
    preload: Callable[[Array, Row], TrainState]
    perturb: Callable[[TrainState, np.int32, np.float32], TrainState]
    """``perturb(state, count, factor)``: other random numbers, and the learning rate times
    ``factor``; donates the state."""


def compile_programs(
    config: Config, trainer: Trainer, keys: RunKeys, state_shape: TrainState
) -> Programs:
    """Compile what every run calls; the rest is compiled when it is first called."""
    whole_shape = state_shape
    replicated = config.learners == 1 and config.devices > 1
    evaluate = make_evaluator(
        trainer.agent,
        trainer.environment,
        config.eval_episodes,
        frame_stack=config.frame_stack,
    )
    chunk = trainer.chunk(config.iterations_per_chunk)

    def chunk_and_totals(state: TrainState) -> tuple[TrainState, tuple[Metrics, Counters]]:
        # The counters once more: those in the state are donated to the next chunk.
        state, metrics = chunk(state)
        counters = state.counters
        if replicated:  # which all have the same
            counters = jax.tree.map(lambda leaf: leaf[0], counters)
        return state, (metrics, counters)

    def evaluate_one(params: Params, key: Array, count: Array) -> EvalInfo:
        return evaluate(params, jax.random.fold_in(key, count))

    def evaluate_all(params: Params, key: Array, count: Array) -> EvalInfo:
        if config.model_devices > 1:
            return on_replica(evaluate_one, params_shape)(params, key, count)
        if trainer.over_learners is None:
            return evaluate_one(params, key, count)
        counts = jnp.full(key.shape, count)
        return trainer.over_learners(evaluate_one)(params, key, counts)

    options = _compiler_options(config)
    state_out = report_out = None
    if trainer.sharding is not None:
        state_out = trainer.sharding(state_shape)
        report_out = _everywhere(state_out)
        state_shape = jax.tree.map(_laid_out, state_shape, state_out)
    params_shape = state_shape.agent.params
    if replicated:
        params_shape = jax.tree.map(
            replica_shape if config.model_devices > 1 else _without_axis, params_shape
        )
    evaluation_out = report_out if config.learners > 1 else None
    saved_shape = state_shape if config.replay_in_checkpoint else without_replay(state_shape)
    hyper = learner_hypers(config)
    chunk_out = (state_out, report_out)
    jitted = (
        (jax.jit(trainer.init, out_shardings=state_out), (keys.train, hyper)),
        (jax.jit(chunk_and_totals, donate_argnums=0, out_shardings=chunk_out), (state_shape,)),
        (
            jax.jit(evaluate_all, out_shardings=evaluation_out),
            (params_shape, keys.evaluate, np.int32(0)),
        ),
        (jax.jit(lambda params: jax.tree.map(jnp.copy, params)), (params_shape,)),
        (jax.jit(snapshot_key_data), (saved_shape,)),
    )
    # XLA compiles outside Python's lock: one program while the next is traced.
    with ThreadPoolExecutor(len(jitted)) as pool:
        compiling = [
            pool.submit(function.lower(*arguments).compile, options)
            for function, arguments in jitted
        ]
        compiled = [program.result() for program in compiling]

    def later(function: Callable[..., Any], **more: Any) -> Callable[..., Any]:
        return jax.jit(function, compiler_options=options, **more)

    def revive(words: PyTree) -> TrainState:
        shape, out = whole_shape, state_out
        if lacks_replay(words):
            shape, out = without_replay(shape), None if out is None else without_replay(out)
        if jax.process_count() > 1:
            words = broadcast_sharded(words, out)
        return later(lambda words: restore_keys(words, shape), out_shardings=out)(words)

    init, run_chunk, evaluate_params, copy, snapshot = compiled
    return Programs(
        init=lambda key: init(key, hyper),
        chunk=run_chunk,
        evaluate=evaluate_params,
        copy=copy,
        snapshot=snapshot,
        revive=revive,
        evaluate_one=evaluate_params if config.learners == 1 else later(evaluate_one),
        refill=later(trainer.refill, out_shardings=state_out),
        preload=later(trainer.preload, out_shardings=state_out),
        perturb=later(_perturb, out_shardings=state_out, donate_argnums=0),
    )


def _without_axis(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


def _laid_out(leaf: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _everywhere(shardings: PyTree) -> NamedSharding:
    """Return the sharding of what every device of a state is to have."""
    return NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())


def _perturb(state: TrainState, count: Array, factor: Array) -> TrainState:
    fold = jax.random.fold_in
    # With several devices each has a key of its own.
    fold = fold if state.key.ndim == 0 else jax.vmap(fold, (0, None))
    key = fold(state.key, count)
    hyper = state.hyper._replace(learning_rate=state.hyper.learning_rate * factor)
    return state._replace(key=key, hyper=hyper)


def _compiler_options(config: Config) -> dict[str, Any] | None:
    if config.deterministic and jax.default_backend() == "gpu":
        return {"xla_gpu_deterministic_ops": True}
    return None
