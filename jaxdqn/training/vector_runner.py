"""Compiled programs of a trainer of environments on the host, and the loop that calls them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.envs.vector.base import VectorEnvironment
from jaxdqn.errors import RunFailed
from jaxdqn.training.keys import IterationKeys, seed_of
from jaxdqn.training.vector_trainer import Acting, Played, VectorTrainer
from jaxdqn.types import (
    COUNTER_BASE,
    Array,
    Counter,
    Counters,
    EnvSpec,
    Hyper,
    Metrics,
    Params,
    PyTree,
    TimeStep,
    TrainState,
    counter_int,
)


class EnvironmentFailed(RunFailed):
    """An environment on the host raised an exception, or returned an invalid time step.

    Args:
      message: one line.
      state: after the last complete iteration; None if there is none.
      report: metrics and counters of the chunk up to there; None without a complete iteration.
      iterations: complete iterations of the chunk.
    """

    def __init__(
        self,
        message: str,
        state: TrainState | None = None,
        report: tuple[Metrics, Counters] | None = None,
        iterations: int = 0,
    ) -> None:
        super().__init__(message)
        self.state, self.report, self.iterations = state, report, iterations


def checked(timestep: TimeStep, spec: EnvSpec) -> TimeStep:
    """Return a time step of environments on the host after a check of its arrays.

    Raises:
      ValueError: naming what is invalid, and the environment.
    """
    obs, reward = timestep.obs, np.asarray(timestep.reward)
    if obs.shape[1:] != spec.obs_shape or obs.dtype != spec.obs_dtype:
        raise ValueError(
            f"an observation is {obs.dtype}{list(obs.shape[1:])}, and must be "
            f"{spec.obs_dtype}{list(spec.obs_shape)}"
        )
    if not np.isfinite(reward).all():
        index = int(np.flatnonzero(~np.isfinite(reward))[0])
        raise ValueError(f"environment {index} returned a reward of {reward[index]}")
    return timestep


class VectorPrograms(NamedTuple):
    """Compiled functions of a ``VectorTrainer``."""

    init: Callable[..., TrainState]
    keys: Callable[[Array], IterationKeys]
    warm_up_keys: Callable[[Array], Array]
    begin: Callable[..., tuple[Acting, PyTree]]
    advance: Callable[..., tuple[Acting, PyTree]]
    remember: Callable[..., TrainState]
    learn: Callable[..., tuple[TrainState, Metrics, Params]]
    no_metrics: Callable[[TrainState], Metrics]
    summarize: Callable[..., tuple[TrainState, Metrics]]
    copy: Callable[[PyTree], PyTree]


def jit_vector_programs(
    trainer: VectorTrainer, options: dict[str, Any] | None = None
) -> VectorPrograms:
    """Jit the functions of a trainer; each is compiled at its first call.

    ``remember`` and ``learn`` donate the state.
    """

    def jit(function: Callable[..., Any], **donated: Any) -> Any:
        return jax.jit(function, compiler_options=options, **donated)

    return VectorPrograms(
        init=jit(trainer.init),
        keys=jit(trainer.keys),
        warm_up_keys=jit(trainer.warm_up_keys),
        begin=jit(trainer.begin),
        advance=jit(trainer.advance),
        remember=jit(trainer.remember, donate_argnums=0),
        learn=jit(trainer.learn, donate_argnums=(0, 1)),
        no_metrics=jit(trainer.no_metrics),
        summarize=jit(trainer.summarize, donate_argnums=0),
        copy=jit(lambda tree: jax.tree.map(jnp.copy, tree)),
    )


class VectorRunner:
    """Steps the environments of a run and calls its programs.

    Args:
      trainer: of the run.
      programs: its compiled functions.
      make: starts the environments, ``make() -> VectorEnvironment``.
    """

    def __init__(
        self,
        trainer: VectorTrainer,
        programs: VectorPrograms,
        make: Callable[[], VectorEnvironment],
    ) -> None:
        self._config, self._programs, self._make = trainer.config, programs, make
        self._learner, self._spec = trainer.learner, trainer.environment.spec
        self._envs: VectorEnvironment | None = None
        self._learner_thread = ThreadPoolExecutor(1, "learner")
        self._acting: Params = None
        """Parameters to act with; None for those of the state."""
        self._hyper: Hyper | None = None

    def close(self) -> None:
        """Close the environments."""
        self._learner_thread.shutdown()
        envs, self._envs = self._envs, None
        if envs is not None:
            with contextlib.suppress(Exception):  # they may have failed
                envs.close()

    def reset(self, seed: int) -> TimeStep:
        """Start the environments, and an episode in each."""
        self._acting = None
        try:
            if self._envs is None:
                self._envs = self._make()
            return checked(self._envs.reset(seed), self._spec)
        except Exception as error:
            raise EnvironmentFailed(failure_text(self._spec.name, "reset", error)) from error

    def _step(self, actions: np.ndarray) -> TimeStep:
        assert self._envs is not None
        try:
            return checked(self._envs.step(actions), self._spec)
        except Exception as error:
            raise EnvironmentFailed(failure_text(self._spec.name, "step", error)) from error

    def init(self, key: Array, hyper: Hyper) -> TrainState:
        """Start a run, warm-up included."""
        timestep = self.reset(seed_of(key))
        state = self._programs.init(key, hyper, timestep)
        return self._store_rows(state, self._programs.warm_up_keys(key))

    def restart(self, state: TrainState) -> TrainState:
        """Return a state whose environments have just been reset, after a resume."""
        timestep = self.reset(seed_of(state.key))
        return state._replace(actor=self._learner.start((), timestep))

    def refill(self, state: TrainState, empty_replay: PyTree) -> TrainState:
        """Repeat the warm-up with an empty replay."""
        key, key_warmup = jax.random.split(state.key)
        shape = (self._config.warmup_iterations, *self._learner.key_shapes.act)
        state = state._replace(key=key, replay=empty_replay)
        return self._store_rows(state, jax.random.split(key_warmup, shape))

    def _store_rows(self, state: TrainState, keys: Array) -> TrainState:
        """Act an iteration with each of the keys [I, K, 1 + E], and store its rows."""
        rows, position = counter_int(state.counters.rows), None
        for index in range(len(keys)):
            params, hyper = state.agent.params, state.hyper
            played, position = self._act(state, position, keys[index], params, hyper, rows)
            # With running statistics of observations the parameters change.
            state = self._programs.remember(state, played)
            rows += self._config.rows_per_iteration
        return state

    def chunk(
        self, state: TrainState, iterations: int
    ) -> tuple[TrainState, tuple[Metrics, Counters]]:
        """Run iterations; return the state, and the metrics and counters."""
        programs, config = self._programs, self._config
        rows, total = counter_int(state.counters.rows), programs.no_metrics(state)
        # Copies, because learn donates the state.
        key, hyper, newest = programs.copy((state.key, state.hyper, state.agent.params))
        acting, position = newest if self._acting is None else self._acting, None
        learning: Future[Any] | None = None
        for done in range(iterations):
            keys = programs.keys(key)
            key = keys.next
            try:
                played, position = self._act(state, position, keys.act, acting, hyper, rows)
            except EnvironmentFailed as failed:
                if learning is not None:
                    state, total, newest = learning.result()
                raise self._with_state(failed, state, total, done) from failed.__cause__
            rows += config.rows_per_iteration
            if learning is not None:
                state, total, newest = learning.result()
            acting = newest
            # Another thread dispatches it: a call after one that takes long, from the same thread,
            # would wait for its end.
            learning = self._learner_thread.submit(
                programs.learn, state, total, key, keys.learn, played
            )
            if not config.overlap:
                state, total, newest = learning.result()
                acting, learning = newest, None
        if learning is not None:
            state, total, newest = learning.result()
        self._acting = acting if config.overlap else None
        state, metrics = programs.summarize(state, total, np.int32(iterations))
        return state, (metrics, state.counters)

    def act_only(self, state: TrainState, iterations: int) -> tuple[TrainState, Counters]:
        """Act and store the rows of iterations without learning, for measurements."""
        keys = jax.random.split(state.key, (iterations, *self._learner.key_shapes.act))
        state = self._store_rows(state, keys)
        return state, state.counters

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
        position: tuple[Acting, TimeStep] | None,
        keys: Array,
        params: Params,
        hyper: Hyper,
        rows: int,
    ) -> tuple[Played, tuple[Acting, TimeStep]]:
        """Act K vector steps from the end of the iteration before.

        Args:
          state: where to start if there is no ``position``.
          position: what an earlier call returned. It does not wait for the gradient steps, which
            the state does.
          keys: [K, 1 + E]
          params: to act with.
          hyper: a copy that is not donated.
          rows: before the iteration.
        """
        programs = self._programs
        count = Counter._make(np.array(divmod(rows, COUNTER_BASE), np.int32))
        timesteps, chosen, stored = [], [], []
        for k in range(self._config.rollout_length):
            if position is None:
                acting, extras = programs.begin(state.actor, keys, params, hyper, count)
            else:
                acting, timestep = position
                acting, extras = programs.advance(
                    acting, np.int32(k), timestep.obs, timestep.first, keys, params, hyper, count
                )
            actions = np.asarray(acting.action)
            timestep = self._step(actions)
            position = acting, timestep
            timesteps.append(timestep)
            chosen.append(actions)
            stored.append(extras)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *timesteps)
        assert position is not None
        actions_of: Any = np.stack(chosen)
        played = Played(stacked, actions_of, tuple(stored), position[0].carry)
        return played, position


def failure_text(name: str, what: str, error: Exception) -> str:
    """Return the message of an environment that failed."""
    reason = " ".join(str(error).split())
    return f"env={name!r}: {what} failed: {type(error).__name__}: {reason}"
