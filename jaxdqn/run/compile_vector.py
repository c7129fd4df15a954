"""Programs of a run whose environments are on the host."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import jax
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.run.compile import Chunk, Programs, compiler_options, make_revive, perturb
from jaxdqn.storage.state import snapshot_key_data
from jaxdqn.training.evaluation import EPSILON, EvalInfo
from jaxdqn.training.vector_evaluation import MOST_ENVS, VectorEvaluator
from jaxdqn.training.vector_runner import VectorPrograms, VectorRunner, jit_vector_programs
from jaxdqn.training.vector_trainer import VectorTrainer
from jaxdqn.types import Array, Counters, Hyper, Params, PyTree, Row, TrainState


class VectorCompiled(NamedTuple):
    """Functions that runs of the same shapes share."""

    programs: VectorPrograms
    snapshot: Callable[[TrainState], PyTree]
    revive: Callable[[PyTree], TrainState]
    perturb: Callable[..., TrainState]
    empty_replay: Callable[[TrainState], PyTree]


def compile_vector(
    config: Config, trainer: VectorTrainer, state_shape: TrainState
) -> VectorCompiled:
    """Jit the functions of a run; each is compiled when it is first called."""
    options = compiler_options(config)
    return VectorCompiled(
        programs=jit_vector_programs(trainer, options),
        snapshot=jax.jit(snapshot_key_data, compiler_options=options),
        revive=make_revive(state_shape, None, options),
        perturb=jax.jit(perturb, compiler_options=options, donate_argnums=0),
        empty_replay=jax.jit(
            lambda state: trainer.learner.empty_replay(state.agent, state.actor),
            compiler_options=options,
        ),
    )


def vector_programs(config: Config, trainer: VectorTrainer, compiled: VectorCompiled) -> Programs:
    """Return the programs of one run, with its own environments; ``close`` closes them."""
    environment = trainer.environment
    runner = VectorRunner(trainer, compiled.programs, lambda: environment.make(config.num_envs))
    evaluator = VectorEvaluator(
        trainer.agent,
        environment,
        config.eval_episodes,
        frame_stack=config.frame_stack,
        most_envs=config.num_envs if config.env_processes else MOST_ENVS,
        options=compiler_options(config),
    )

    def counted(state: TrainState) -> tuple[TrainState, Counters]:
        return state, jax.device_get(state.counters)

    def chunk_of(iterations: int) -> Chunk:
        return lambda state: runner.chunk(state, iterations)

    def part_of_chunk(iterations: int) -> Future[Chunk]:
        future: Future[Chunk] = Future()
        future.set_result(chunk_of(iterations))
        return future

    def evaluation(epsilon: float) -> Callable[[Params, Array, np.int32], EvalInfo]:
        def evaluate(params: Params, key: Array, count: np.int32) -> EvalInfo:
            return evaluator.evaluate(params, jax.random.fold_in(key, count), epsilon)

        return evaluate

    def revive(saved: PyTree) -> TrainState:
        state = compiled.revive(saved)
        # The simulators were not saved: new episodes start, with other random numbers.
        return runner.restart(state)

    def refill(state: TrainState) -> tuple[TrainState, Counters]:
        return counted(runner.refill(state, compiled.empty_replay(state)))

    def init(key: Array, hyper: Hyper) -> tuple[TrainState, Counters]:
        return counted(runner.init(key, hyper))

    def preload(key: Array, rows: Row, hyper: Hyper) -> tuple[TrainState, Counters]:
        raise NotImplementedError("replay_from is rejected with an environment on the host")

    def close() -> None:
        runner.close()
        evaluator.close()

    evaluate = evaluation(config.eval_epsilon)
    return Programs(
        init=init,
        chunk=chunk_of(config.iterations_per_chunk),
        evaluate=evaluate,
        copy=compiled.programs.copy,
        snapshot=compiled.snapshot,
        params=trainer.params,
        revive=revive,
        evaluate_one=evaluate,
        evaluate_at_epsilon=evaluation(EPSILON),
        refill=refill,
        preload=preload,
        perturb=compiled.perturb,
        part_of_chunk=part_of_chunk,
        close=close,
    )
