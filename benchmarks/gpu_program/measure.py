"""Compile the cases for a GPU, and count the launches of an iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from benchmarks.gpu_program.cases import Case
from benchmarks.gpu_program.compiling import Compiled, compile_for_gpu, gpu_devices
from benchmarks.gpu_program.counts import count_iteration, describe
from jaxdqn.backend_choices import tracing_for
from jaxdqn.config.config import Config
from jaxdqn.parallel import across_devices, device_collectives, population
from jaxdqn.run.compile import compiler_options
from jaxdqn.run.profiling import REGIONS
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import PyTree, Trainer

ITERATIONS = 11
"""Number of iterations of a chunk; no loop within an iteration has this trip count."""


def count_case(case: Case, dump: Path | None = None) -> dict[str, Any]:
    """Return the launches of one iteration of a case, and figures of its program.

    Args:
        case: the program.
        dump: folder for the dumps of XLA, in a subfolder with the name of the case.
    """
    config = case.config()
    with tracing_for("gpu"):
        compiled = _compile(config, None if dump is None else dump / case.name)
    counts = count_iteration(compiled.thunks, ITERATIONS, REGIONS)
    return {
        **describe(counts),
        "temporary_bytes": compiled.temporary_bytes,
        "argument_bytes": compiled.argument_bytes,
        "trace_seconds": round(compiled.trace_seconds, 2),
        "compile_seconds": round(compiled.compile_seconds, 2),
        "compile_cpu_seconds": round(compiled.compile_cpu_seconds, 2),
    }


def _compile(config: Config, dump: Path | None) -> Compiled:
    devices = gpu_devices(config.devices)
    trainer = _trainer(config, devices)
    key = jax.eval_shape(lambda: jax.random.key(0))
    if config.learners > 1:
        key = jax.ShapeDtypeStruct((config.learners,), key.dtype)
    state = jax.eval_shape(trainer.init, key)
    arguments, options = [_placed(state, trainer, devices)], compiler_options(config) or {}
    return compile_for_gpu(trainer.chunk(ITERATIONS), arguments, options, dump)


def _trainer(config: Config, devices: Any) -> Trainer:
    """Make the trainer of a configuration, mapped over devices used for compilation only."""
    collectives = device_collectives(config.replicas)
    trainer = make_trainer(config, collectives=collectives)
    if config.learners > 1:
        return population(trainer, config.learners, how=config.population)
    return trainer if config.devices == 1 else across_devices(trainer, devices)


def _placed(state: PyTree, trainer: Trainer, devices: Any) -> PyTree:
    """Return the shapes of a state with their shardings."""
    if trainer.sharding is None:
        one = jax.sharding.SingleDeviceSharding(devices[0])
        shardings = jax.tree.map(lambda _: one, state)
    else:
        shardings = trainer.sharding(state)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )
