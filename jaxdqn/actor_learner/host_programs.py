"""Programs of a run on Ray that do not depend on its workers, for environments on the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.envs.vector.restarts import Restarts
from jaxdqn.run.compile import Programs, compiler_options, make_revive, perturb
from jaxdqn.storage.state import snapshot_key_data
from jaxdqn.training.evaluation import EPSILON, EvalInfo
from jaxdqn.training.vector_evaluation import PlayPrograms, VectorEvaluator, envs_of, make_play
from jaxdqn.training.vector_trainer import VectorTrainer
from jaxdqn.types import Array, Params, TrainState


def make_host_programs(
    config: Config, trainer: VectorTrainer, init: Callable[..., Any], state: TrainState
) -> Programs:
    """Make the programs of evaluations and checkpoints; each is compiled at its first call.

    Args:
      config: configuration of the run.
      trainer: trainer of the run.
      init: ``init(key, hyper) -> state`` before the warm-up.
      state: shapes of the state, without a replay.
    """
    options = compiler_options(config)
    later = partial(jax.jit, compiler_options=options)
    num_envs = envs_of(trainer.environment, config.eval_episodes)
    play = make_play(trainer.agent, num_envs, frame_stack=config.frame_stack)
    restarts = Restarts(config.restart_envs)
    evaluator = VectorEvaluator(
        trainer.environment,
        PlayPrograms(later(play.begin), later(play.advance)),
        config.eval_episodes,
        num_envs,
        restarts=restarts,
    )

    def evaluation(epsilon: float) -> Callable[[Params, Array, np.int32], EvalInfo]:
        def evaluate(params: Params, key: Array, count: np.int32) -> EvalInfo:
            return evaluator.evaluate(params, jax.random.fold_in(key, count), epsilon)

        return evaluate

    def stop_evaluations(stop: Callable[[], bool]) -> None:
        evaluator.stop = stop

    def started(key: Array, hyper: Any) -> Any:
        state = init(key, hyper)
        return state, state.counters

    evaluate = evaluation(config.eval_epsilon)
    return Programs(
        init=later(started),
        chunk=_of_workers,
        evaluate=evaluate,
        copy=later(lambda params: jax.tree.map(jnp.copy, params)),
        snapshot=later(snapshot_key_data),
        params=trainer.params,
        revive=make_revive(state, None, options),
        evaluate_one=evaluate,
        evaluate_at_epsilon=evaluation(EPSILON),
        refill=_of_workers,
        preload=_of_workers,
        perturb=later(perturb, donate_argnums=0),
        part_of_chunk=_of_workers,
        stop_evaluations=stop_evaluations,
        env_failures=lambda: restarts.failures,
        close=evaluator.close,
    )


def _of_workers(*arguments: Any) -> Any:
    raise NotImplementedError("the workers run the chunks")
