"""The compiled programs of a run, and the trainer they are made from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.checkpoint import revive_words, snapshot_words
from jaxdqn.config import Config
from jaxdqn.evaluation import EvalInfo, make_evaluator
from jaxdqn.loggers import Record
from jaxdqn.mappings import across_devices, device_collectives
from jaxdqn.mappings.devices import state_sharding
from jaxdqn.trainer import make_chunk, make_trainer
from jaxdqn.types import Array, Counters, Metrics, Params, PyTree, Row, Trainer, TrainState


class RunKeys(NamedTuple):
    """The independent streams of randomness of a run."""

    train: Array
    evaluate: Array
    """The same episodes at every evaluation, so that differences are the policy's."""
    confirm: Array
    """Folded with a count: fresh episodes every time."""


class Programs(NamedTuple):
    """What the host calls. The first block is compiled ahead, so that no clock measures it."""

    init: Callable[[Array], TrainState]
    chunk: Callable[[TrainState], tuple[TrainState, tuple[Metrics, Counters]]]
    """Donates the state; the counters are those of the new state."""
    evaluate: Callable[[Params, Array, np.int32], EvalInfo]
    """``evaluate(params, key, count)``; consumes ``key`` folded with ``count``."""
    copy: Callable[[Params], Params]
    snapshot: Callable[[TrainState], PyTree]
    """A copy of the state, keys as words."""

    revive: Callable[[PyTree], TrainState]
    """The state of a snapshot's words."""
    refill: Callable[[TrainState], TrainState]
    preload: Callable[[Array, Row], TrainState]
    turn: Callable[[TrainState, np.int32, np.float32], TrainState]
    """``turn(state, count, factor)``: other random numbers, and the learning rate times
    ``factor``; donates the state."""


def run_keys(seed: int) -> RunKeys:
    """Return a run's keys: ``train(config)(run_keys(seed).train)`` trains as ``run`` does."""
    return RunKeys(*jax.random.split(jax.random.key(seed), 3))


def make_mapped_trainer(config: Config, **parts: Any) -> Trainer:
    """Make the trainer of a configuration, spread over its devices.

    Raises:
        ValueError: as ``make_trainer``, or if there are too few devices.
    """
    if config.devices == 1:
        return make_trainer(config, **parts)
    devices = run_devices(config)
    collectives = device_collectives(len(devices), deterministic=config.deterministic)
    return across_devices(make_trainer(config, collectives=collectives, **parts), devices)


def run_devices(config: Config) -> list[jax.Device]:
    """Return the devices a run uses.

    Raises:
        ValueError: if there are too few.
    """
    devices = jax.devices()
    if config.devices > len(devices):
        raise ValueError(
            f"devices={config.devices}: must be at most the {len(devices)} "
            f"{devices[0].platform} devices here"
        )
    return devices[: config.devices]


def compile_programs(
    config: Config, trainer: Trainer, keys: RunKeys, state_shape: TrainState
) -> Programs:
    """Compile what every run calls; the rest is compiled when it is first called."""
    whole_shape = state_shape
    evaluate = make_evaluator(
        trainer.agent,
        trainer.environment,
        config.eval_episodes,
        frame_stack=config.frame_stack,
    )
    chunk = make_chunk(trainer, config.iterations_per_chunk)

    def chunk_and_totals(state: TrainState) -> tuple[TrainState, tuple[Metrics, Counters]]:
        # The counters once more: those in the state are donated to the next chunk.
        state, metrics = chunk(state)
        return state, (metrics, state.counters)

    def evaluate_at(params: Params, key: Array, count: Array) -> EvalInfo:
        return evaluate(params, jax.random.fold_in(key, count))

    def revive(words: PyTree) -> TrainState:
        shape = without_replay(whole_shape) if _lacks_replay(words) else whole_shape
        return revive_words(words, shape)

    params_shape = state_shape.agent.params
    state_out = chunk_out = None
    if config.devices > 1:
        state_out = state_sharding(run_devices(config))
        chunk_out = (state_out, None)
        params_shape = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params_shape
        )
        state_shape = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=state_out),
            state_shape,
        )
    saved_shape = state_shape if config.replay_in_checkpoint else without_replay(state_shape)
    jitted = (
        (jax.jit(trainer.init, out_shardings=state_out), (keys.train,)),
        (jax.jit(chunk_and_totals, donate_argnums=0, out_shardings=chunk_out), (state_shape,)),
        (jax.jit(evaluate_at), (params_shape, keys.evaluate, np.int32(0))),
        (jax.jit(lambda params: jax.tree.map(jnp.copy, params)), (params_shape,)),
        (jax.jit(snapshot_words), (saved_shape,)),
    )
    options = _compiler_options(config)
    # XLA compiles outside Python's lock: one program while the next is traced.
    with ThreadPoolExecutor(len(jitted)) as pool:
        compiling = [
            pool.submit(function.lower(*arguments).compile, options)
            for function, arguments in jitted
        ]
        compiled = [program.result() for program in compiling]

    def later(function: Callable[..., Any], **donated: Any) -> Callable[..., Any]:
        return jax.jit(function, out_shardings=state_out, compiler_options=options, **donated)

    init, run_chunk, evaluate_params, copy, snapshot = compiled
    return Programs(
        init=init,
        chunk=run_chunk,
        evaluate=evaluate_params,
        copy=copy,
        snapshot=snapshot,
        revive=later(revive),
        refill=later(trainer.refill),
        preload=later(trainer.preload),
        turn=later(_turn, donate_argnums=0),
    )


def without_replay(state: TrainState) -> TrainState:
    """Return the state as it is saved where the replay is not."""
    return state._replace(replay=())


def fitting(state: TrainState, meta: Record) -> TrainState:
    """Return the shapes of a state as a checkpoint with this ``meta`` holds it."""
    return state if meta["replay"] else without_replay(state)


def _lacks_replay(words: PyTree) -> bool:
    return not jax.tree.leaves(words.replay)


def _turn(state: TrainState, count: Array, factor: Array) -> TrainState:
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
