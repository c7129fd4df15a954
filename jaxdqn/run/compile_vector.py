"""Programs of a run whose environments are on the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.envs.vector.restarts import Restarts
from jaxdqn.run.compile import (
    Chunk,
    Programs,
    compile_all,
    compiler_options,
    finished,
    make_revive,
    perturb,
)
from jaxdqn.storage.state import snapshot_key_data, without_replay
from jaxdqn.training.evaluation import EPSILON, EvalInfo
from jaxdqn.training.vector_evaluation import (
    PlayPrograms,
    VectorEvaluator,
    envs_of,
    make_play,
)
from jaxdqn.training.vector_programs import (
    ACTING,
    SELDOM,
    VectorPrograms,
    jit_vector_programs,
    program_arguments,
)
from jaxdqn.training.vector_runner import VectorRunner
from jaxdqn.training.vector_trainer import VectorTrainer
from jaxdqn.types import Array, Counters, Hyper, Params, PyTree, Row, TrainState


class VectorCompiled(NamedTuple):
    """Programs shared by runs of the same shapes."""

    programs: VectorPrograms
    play: PlayPrograms
    num_envs: int
    """n, number of environments in an evaluation."""
    copy: Callable[[Params], Params]
    snapshot: Callable[[TrainState], PyTree]
    revive: Callable[[PyTree], TrainState]
    perturb: Callable[..., TrainState]


def compile_vector(
    config: Config,
    trainer: VectorTrainer,
    state: TrainState,
    check: Callable[[], None] = lambda: None,
) -> VectorCompiled:
    """Compile the programs that every run calls; the others are compiled at their first call.

    Args:
      config: configuration of the run.
      trainer: trainer of the run.
      state: shapes of the state.
      check: see ``compile_programs``.
    """
    options = compiler_options(config)
    later = partial(jax.jit, compiler_options=options)
    arguments = program_arguments(trainer, state)
    state, state_out = arguments.summarize[0], None
    if trainer.sharding is not None:
        state_out = trainer.sharding(state)
    params, (key, _, timestep) = trainer.params(state), arguments.init
    num_envs = envs_of(trainer.environment, config.eval_episodes)
    play = make_play(trainer.agent, num_envs, frame_stack=config.frame_stack)
    timestep = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (num_envs, *leaf.shape[1 + trainer.mapped :]), leaf.dtype
        ),
        timestep,
    )
    count, epsilon = np.int32(0), np.float32(0)
    playing = jax.eval_shape(play.begin, params, key, timestep, epsilon)
    saved = state if config.replay_in_checkpoint else without_replay(state)
    jitted = jit_vector_programs(trainer, options)
    later_too = {*SELDOM, *(ACTING if acting_device(config) is not None else ())}
    if config.warmup_iterations == 0:  # as for PQN: there are no blocks to index
        later_too.add("block")
    ahead = [name for name in VectorPrograms._fields if name not in later_too]
    compiled = compile_all(
        (
            *((getattr(jitted, name), getattr(arguments, name)) for name in ahead),
            (jax.jit(play.begin), (params, key, timestep, epsilon)),
            (jax.jit(play.advance), (params, key, count, playing, timestep, epsilon)),
            (jax.jit(lambda params: jax.tree.map(jnp.copy, params)), (params,)),
            (jax.jit(snapshot_key_data), (saved,)),
        ),
        options,
        check,
    )
    begin, advance, copy, snapshot = compiled[len(ahead) :]
    return VectorCompiled(
        programs=jitted._replace(**dict(zip(ahead, compiled, strict=False))),
        play=PlayPrograms(begin, advance),
        num_envs=num_envs,
        copy=copy,
        snapshot=snapshot,
        revive=make_revive(state, state_out, options),
        perturb=later(perturb, donate_argnums=0, out_shardings=state_out),
    )


def acting_device(config: Config) -> jax.Device | None:
    """Return the acting device; None if the learning devices act.

    Raises:
      ValueError: if ``act_on`` is ``"cpu"`` but JAX has no CPU device.
    """
    if config.act_on == "device" or jax.default_backend() == "cpu":
        return None
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ValueError(
            f"act_on={config.act_on!r}: must be device, because JAX has no CPU device; "
            "JAX_PLATFORMS names its platforms"
        ) from error


def vector_programs(config: Config, trainer: VectorTrainer, compiled: VectorCompiled) -> Programs:
    """Return the programs of one run with new environments, which ``close`` closes."""
    restarts = Restarts(config.restart_envs)
    runner = VectorRunner(trainer, compiled.programs, acting_device(config), restarts)
    evaluator = VectorEvaluator(
        trainer.environment,
        compiled.play,
        config.eval_episodes,
        compiled.num_envs,
        restarts=restarts,
    )

    def counted(state: TrainState) -> tuple[TrainState, Counters]:
        return state, jax.device_get(trainer.counters(state))

    def chunk_of(iterations: int) -> Chunk:
        return lambda state: runner.chunk(state, iterations)

    def evaluation(epsilon: float) -> Callable[[Params, Array, np.int32], EvalInfo]:
        def evaluate(params: Params, key: Array, count: np.int32) -> EvalInfo:
            return evaluator.evaluate(params, jax.random.fold_in(key, count), epsilon)

        return evaluate

    def revive(saved: PyTree) -> TrainState:
        state = compiled.revive(saved)
        # The simulators were not saved, so new episodes start with new random numbers.
        return runner.restart(state)

    def refill(state: TrainState) -> tuple[TrainState, Counters]:
        return counted(runner.refill(state))

    def init(key: Array, hyper: Hyper) -> tuple[TrainState, Counters]:
        return counted(runner.init(key, hyper))

    def preload(key: Array, rows: Row, hyper: Hyper) -> tuple[TrainState, Counters]:
        raise NotImplementedError("replay_from is rejected with an environment on the host")

    def stop_evaluations(stop: Callable[[], bool]) -> None:
        evaluator.stop = stop

    def close() -> None:
        runner.close()
        evaluator.close()

    evaluate = evaluation(config.eval_epsilon)
    return Programs(
        init=init,
        chunk=chunk_of(config.iterations_per_chunk),
        evaluate=evaluate,
        copy=compiled.copy,
        snapshot=compiled.snapshot,
        params=trainer.params,
        revive=revive,
        evaluate_one=evaluate,
        evaluate_at_epsilon=evaluation(EPSILON),
        refill=refill,
        preload=preload,
        perturb=compiled.perturb,
        part_of_chunk=lambda iterations: finished(chunk_of(iterations)),
        stop_evaluations=stop_evaluations,
        time_shares=runner.times.shares,
        env_failures=lambda: restarts.failures,
        close=close,
    )
