"""Compiled chunks of configurations, and their rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.accelerator.plan import Cell, Sizes, measured_by
from benchmarks.timing import Case, alternate, spread
from benchmarks.workloads import carried
from jaxdqn.config.config import Config
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_hypers, learner_keys
from jaxdqn.run.compile import compiler_options
from jaxdqn.run.device_memory import DeviceBytes, bytes_per_device


class Program:
    """Chunk of a configuration: traced and compiled first, run later.

    It allocates no device memory before ``start``, so many programs can be compiled in advance.
    """

    def __init__(self, config: Config, iterations: int) -> None:
        self.config, self.iterations = config, iterations
        self._compiled: tuple[Any, Any, Any] | None = None
        self.compile_seconds = 0.0
        self.state_bytes: DeviceBytes | None = None

    def prepare(self) -> Callable[[], None]:
        """Trace; return the function that compiles."""
        config = self.config
        trainer = make_mapped_trainer(config)
        arguments = learner_keys(config).train, learner_hypers(config)
        shape = jax.eval_shape(trainer.init, *arguments)
        self.state_bytes = bytes_per_device(trainer, shape)
        init = jax.jit(trainer.init).lower(*arguments)
        chunk = jax.jit(trainer.chunk(self.iterations), donate_argnums=0).lower(shape)

        def compile_both() -> None:
            started, options = time.perf_counter(), compiler_options(config)
            self._compiled = init.compile(options), chunk.compile(options), arguments
            self.compile_seconds = time.perf_counter() - started

        return compile_both

    def start(self) -> Callable[[], Any]:
        """Create the initial state; return a function that runs the next chunk.

        The function returns the state, which its next call donates, and the metrics.
        """
        if self._compiled is None:
            self.prepare()()
        assert self._compiled is not None
        init, chunk, arguments = self._compiled
        return carried(chunk, init(*arguments))

    @property
    def chunk(self) -> Any:
        """The compiled chunk."""
        assert self._compiled is not None
        return self._compiled[1]

    def sizes(self) -> dict[str, Any]:
        """Return the settings that determine the work of an iteration."""
        config = self.config
        return {
            "env": config.env,
            "algorithm": config.algorithm,
            "num_envs": config.num_envs,
            "rollout_length": config.rollout_length,
            "gradient_steps": config.gradient_steps_per_iteration,
            "batch_size": config.batch_per_device,
            "learners": config.learners,
        }


def timed_cell(name: str, config: Config, iterations: int, sizes: Sizes) -> Cell:
    """Return the cell that measures the rates of a configuration."""
    program = Program(config, iterations)
    return Cell(name, measured_by(measure_rates, program, sizes), program.prepare)


def measure_rates(program: Program, sizes: Sizes) -> dict[str, Any]:
    """Measure a chunk: time of an iteration, and environment and gradient steps per second."""
    run = program.start()
    cases = {"chunk": Case(run, program.iterations)}
    times = alternate(cases, rounds=sizes.rounds, seconds=sizes.seconds)["chunk"]
    _, metrics = jax.block_until_ready(run())
    iteration = spread(times)
    env_steps = int(metrics.env_steps.sum()) / program.iterations
    config = program.config
    gradient_steps = config.gradient_steps_per_iteration * config.learners
    return {
        **program.sizes(),
        "us_per_iteration": [1e6 * seconds for seconds in iteration],
        "env_steps_per_second": env_steps / iteration.median,
        "gradient_steps_per_second": gradient_steps / iteration.median,
        "compile_seconds": program.compile_seconds,
        **program_memory(program),
    }


def program_memory(program: Program) -> dict[str, Any]:
    """Return the bytes of the state, of its replay, and of the temporary memory of a chunk."""
    assert program.state_bytes is not None
    analysis = program.chunk.memory_analysis()
    return {
        "state_bytes": program.state_bytes.state,
        "replay_bytes": program.state_bytes.replay,
        "temporary_bytes": getattr(analysis, "temp_size_in_bytes", None),
    }
