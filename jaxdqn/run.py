"""The host loop: chunks on the device, and between them logs, evaluations and signals."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn import run_directory
from jaxdqn.agent import Optimizer
from jaxdqn.config import Config, replace, to_dict
from jaxdqn.evaluation import EvalInfo, make_evaluator
from jaxdqn.host_loop import HostLoop, Programs, RunKeys, identity, learned_params
from jaxdqn.loggers import Logger, Record, make_jsonl_logger
from jaxdqn.mappings import across_devices, device_collectives
from jaxdqn.mappings.devices import state_sharding
from jaxdqn.plotting import plot_runs
from jaxdqn.replay import check_memory, tree_bytes
from jaxdqn.signals import asked_to_end
from jaxdqn.trainer import make_chunk, make_trainer
from jaxdqn.types import (
    Array,
    Counters,
    Environment,
    Metrics,
    Params,
    Trainer,
    TrainState,
)


class RunResult(NamedTuple):
    """What a run leaves in memory."""

    state: TrainState
    """At the end; with several devices each leaf has a leading axis [D]."""
    best_params: Params
    """Of the best evaluation."""
    summary: Record
    """What ``summary.json`` holds."""


def run(
    config: Config,
    *,
    out: str | os.PathLike[str] | None = None,
    preset: str | None = None,
    environment: Environment | None = None,
    network: Any = None,
    optimizer: Optimizer | None = None,
    loggers: Sequence[Logger] = (),
) -> RunResult:
    """Train as a configuration says, and report.

    SIGINT and SIGTERM end the run at the next chunk with everything written; a
    second SIGINT ends it at once.

    Args:
        config: the run.
        out: the run directory to make; None writes nothing.
        preset: the name of the preset, for the summary.
        environment: your own, instead of ``config.env``.
        network: your own, as ``make_trainer`` takes it.
        optimizer: your own, as ``make_trainer`` takes it.
        loggers: take the records of the run; they are closed at its end.

    Raises:
        ValueError: if the configuration is refused, the replay does not fit in
            memory, or ``out`` is in use or cannot be written.
    """
    with ExitStack() as stack:
        for logger in loggers:
            stack.callback(logger.close)
        if out is not None:
            run_directory.check_unused(out)
        trainer = make_mapped_trainer(
            config, environment=environment, network=network, optimizer=optimizer
        )
        config = replace(config, env=trainer.environment.spec.name)
        keys = run_keys(config)
        state_shape = jax.eval_shape(trainer.init, keys.train)
        check_memory(tree_bytes(state_shape.replay) // config.devices)
        directory = None
        if out is not None:
            directory = run_directory.create(out, config)
            files = make_jsonl_logger(directory)
            stack.callback(files.close)
            loggers = (*loggers, files)
        for logger in loggers:
            start = {"config": to_dict(config), "out": None if out is None else str(out)}
            logger.log("start", start)
        asked = stack.enter_context(asked_to_end())
        started = time.perf_counter()
        programs = _compile(config, trainer, keys, state_shape)
        host = HostLoop(config, programs, keys, loggers)
        compile_seconds = time.perf_counter() - started
        state = host.train(asked)
        summary = {
            **identity(config, preset),
            "compile_seconds": compile_seconds,
            **host.summary(),
            "interrupted": bool(asked),
        }
        for logger in loggers:
            logger.log("summary", summary)
        if directory is not None:
            run_directory.save_params(directory / "best", host.best_params)
            run_directory.save_params(directory / "last", learned_params(config, state))
            run_directory.write_json(directory / run_directory.SUMMARY, summary)
            plot_runs([directory], directory / run_directory.CURVE)
    return RunResult(state=state, best_params=host.best_params, summary=summary)


def run_keys(config: Config) -> RunKeys:
    """Return a run's keys: ``train(config)(run_keys(config).train)`` trains as ``run`` does."""
    return RunKeys(*jax.random.split(jax.random.key(config.seed), 3))


def make_mapped_trainer(config: Config, **parts: Any) -> Trainer:
    """Make the trainer of a configuration, spread over its devices.

    Raises:
        ValueError: as ``make_trainer``, or if there are too few devices.
    """
    if config.devices == 1:
        return make_trainer(config, **parts)
    devices = run_devices(config)
    trainer = make_trainer(config, collectives=device_collectives(len(devices)), **parts)
    return across_devices(trainer, devices)


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


def _compile(config: Config, trainer: Trainer, keys: RunKeys, state_shape: TrainState) -> Programs:
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
    jitted = (
        (jax.jit(trainer.init, out_shardings=state_out), (keys.train,)),
        (jax.jit(chunk_and_totals, donate_argnums=0, out_shardings=chunk_out), (state_shape,)),
        (jax.jit(evaluate_at), (params_shape, keys.evaluate, np.int32(0))),
        (jax.jit(lambda params: jax.tree.map(jnp.copy, params)), (params_shape,)),
    )
    # XLA compiles outside Python's lock: one program while the next is traced.
    with ThreadPoolExecutor(len(jitted)) as pool:
        compiling = [
            pool.submit(function.lower(*arguments).compile) for function, arguments in jitted
        ]
        return Programs(*(program.result() for program in compiling))
