"""Compiled programs of a trainer of environments on the host, and the loop that calls them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdqn.envs.vector.checked import CheckedEnvironments, EnvironmentFailed
from jaxdqn.training.keys import seed_of, start_keys
from jaxdqn.training.vector_functions import Acting, KeyBlock, Played, block_length, played_shape
from jaxdqn.training.vector_trainer import VectorTrainer
from jaxdqn.types import (
    Array,
    Counters,
    Hyper,
    Metrics,
    Params,
    PyTree,
    TimeStep,
    TrainState,
)


class VectorPrograms(NamedTuple):
    """Compiled functions of a ``VectorTrainer``, which documents them.

    ``remember`` and ``learn`` donate the state.
    """

    init: Any
    keys: Any
    warm_up_keys: Any
    begin: Any
    advance: Any
    remember: Any
    learn: Any
    begin_chunk: Any
    summarize: Any


_DONATED: dict[str, Any] = {"remember": 0, "learn": (0, 1), "summarize": 0}


def jit_vector_programs(
    trainer: VectorTrainer, options: dict[str, Any] | None = None
) -> VectorPrograms:
    """Jit the functions of a trainer; each is compiled at its first call."""
    return VectorPrograms(
        *(
            jax.jit(getattr(trainer, name), donate_argnums=_DONATED.get(name, ()),
                    compiler_options=options)
            for name in VectorPrograms._fields
        )
    )  # fmt: skip


def program_arguments(trainer: VectorTrainer, state: TrainState) -> VectorPrograms:
    """Return the shapes of the arguments of each program, to compile it before it is called.

    Args:
      trainer: of the run.
      state: shapes of the state.
    """
    actor, hyper, params = state.actor, state.hyper, state.agent.params
    rows, index = state.counters.rows, np.int32(0)
    keys = jax.eval_shape(trainer.keys, state.key)
    acting = jax.eval_shape(trainer.begin, actor, keys.act, params, hyper, rows)[0]
    played = played_shape(trainer.config, trainer.begin, state)
    total = jax.eval_shape(trainer.begin_chunk, state)[-1]
    return VectorPrograms(
        init=(state.key, hyper, actor.timestep),
        keys=(state.key,),
        warm_up_keys=(state.key,),
        begin=(actor, keys.act, params, hyper, rows),
        advance=(acting, actor.timestep, keys.act, params, hyper),
        remember=(state, played),
        learn=(state, total, index, keys, played),
        begin_chunk=(state,),
        summarize=(state, total, index),
    )


class VectorRunner:
    """Caller of the programs of a run, which steps its environments.

    Args:
      trainer: of the run.
      programs: its compiled functions.
    """

    def __init__(self, trainer: VectorTrainer, programs: VectorPrograms) -> None:
        self._config, self._programs = trainer.config, programs
        self._environment, self._learner = trainer.environment, trainer.learner
        self._envs: CheckedEnvironments | None = None
        self._block_length = block_length(trainer.config)
        self._learner_thread = ThreadPoolExecutor(1, "learner")
        self._acting: Params = None
        """Parameters to act with; None for those of the state."""

    def close(self) -> None:
        """Close the environments."""
        self._learner_thread.shutdown()
        if self._envs is not None:
            self._envs.close()

    def reset(self, seed: int) -> TimeStep:
        """Start the environments, and an episode in each."""
        self._acting = None
        if self._envs is None:
            self._envs = CheckedEnvironments(
                self._environment, self._config.num_envs, self._config.restart_envs
            )
        return self._envs.reset(seed)

    @property
    def failures(self) -> list[EnvironmentFailed]:
        """Failures after which the environments were started again."""
        return [] if self._envs is None else self._envs.failures

    def init(self, key: Array, hyper: Hyper) -> TrainState:
        """Start a run, warm-up included."""
        keys = start_keys(key, 0)
        state = self._programs.init(key, hyper, self.reset(seed_of(keys.envs)))
        return self.warm_up(state, keys.warm_up)

    def restart(self, state: TrainState) -> TrainState:
        """Return a state whose environments have just been reset, after a resume."""
        timestep = self.reset(seed_of(state.key))
        return state._replace(actor=self._learner.start((), timestep))

    def refill(self, state: TrainState, empty_replay: PyTree) -> TrainState:
        """Repeat the warm-up with an empty replay."""
        key, key_warmup = jax.random.split(state.key)
        return self.warm_up(state._replace(key=key, replay=empty_replay), key_warmup)

    def warm_up(self, state: TrainState, key: Array) -> TrainState:
        """Act the iterations of the warm-up and store their rows, but learn nothing; donates the
        state."""
        blocks = self._programs.warm_up_keys(key)
        return self.act(state, blocks, self._config.warmup_iterations)

    def act(self, state: TrainState, blocks: Array, iterations: int) -> TrainState:
        """Act iterations with keys [blocks, I K] and store their rows, but learn nothing; donates
        the state."""
        position = None
        _, hyper, params, _ = self._programs.begin_chunk(state)
        for done in range(iterations):
            block, index = divmod(done, self._block_length)
            if index == 0:
                keys = blocks[block]
                position = _restart_keys(position)
            played, position = self._act(state, position, keys, params, hyper)
            state = self._programs.remember(state, played)
            if self._config.normalize_observations:  # the statistics are among the parameters
                params = self._programs.begin_chunk(state)[2]
        return state

    def chunk(
        self, state: TrainState, iterations: int
    ) -> tuple[TrainState, tuple[Metrics, Counters]]:
        """Run iterations; return the state, and the metrics and counters."""
        programs, overlap = self._programs, self._config.overlap
        key, hyper, newest, total = programs.begin_chunk(state)
        acting, position = newest if self._acting is None else self._acting, None
        learning: Future[Any] | None = None
        keys: KeyBlock | None = None
        for done in range(iterations):
            index = done % self._block_length
            if keys is None or index == 0:
                keys = programs.keys(key)
                key = keys.last
                position = _restart_keys(position)
            try:
                played, position = self._act(state, position, keys.act, acting, hyper)
            except EnvironmentFailed as failed:
                if learning is not None:
                    state, total, newest = learning.result()
                raise self._with_state(failed, state, total, done) from failed.__cause__
            if learning is not None:
                state, total, newest = learning.result()
            acting = newest
            # Another thread dispatches it: a call after one that takes long, from the same thread,
            # would wait for its end.
            learning = self._learner_thread.submit(
                programs.learn, state, total, np.int32(index), keys, played
            )
            if not overlap:
                state, total, newest = learning.result()
                acting, learning = newest, None
        if learning is not None:
            state, total, newest = learning.result()
        self._acting = acting if overlap else None
        state, metrics = programs.summarize(state, total, np.int32(iterations))
        return state, (metrics, state.counters)

    def _with_state(
        self, failed: EnvironmentFailed, state: TrainState, total: Metrics, done: int
    ) -> EnvironmentFailed:
        """Return a failure with the result of the complete iterations of a chunk."""
        if done == 0:
            return EnvironmentFailed(str(failed), state)
        state, metrics = self._programs.summarize(state, total, np.int32(done))
        return EnvironmentFailed(str(failed), state, (metrics, state.counters), done)

    def _act(
        self,
        state: TrainState,
        position: Position | None,
        keys: Array,
        params: Params,
        hyper: Hyper,
    ) -> tuple[Played, Position]:
        """Act K vector steps from the end of the iteration before.

        Args:
          state: where to start if there is no ``position``.
          position: what an earlier call returned. It does not wait for the gradient steps, which
            the state does.
          keys: [I K] of the agent
          params: to act with.
          hyper: a copy that is not donated.
        """
        assert self._envs is not None
        step, advance = self._envs.step, self._programs.advance
        timesteps, chosen, stored = [], [], []
        for _ in range(self._config.rollout_length):
            if position is None:
                acting, extras = self._programs.begin(
                    state.actor, keys, params, hyper, state.counters.rows
                )
            else:
                acting, extras = advance(*position, keys, params, hyper)
            actions = np.asarray(acting.action)
            timestep = step(actions)
            position = Position(acting, timestep)
            timesteps.append(timestep)
            chosen.append(actions)
            stored.append(extras)
        assert position is not None
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *timesteps)
        actions_of: Any = np.stack(chosen)
        return Played(stacked, actions_of, tuple(stored), acting.carry), position


class Position(NamedTuple):
    """State of acting between two iterations."""

    acting: Acting
    timestep: TimeStep


def _restart_keys(position: Position | None) -> Position | None:
    """Return the state of acting at the start of a block of keys."""
    if position is None:
        return None
    step: Any = np.int32(0)
    return position._replace(acting=position.acting._replace(step=step))
