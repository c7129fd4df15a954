"""Loop that steps environments on the host and calls the compiled programs."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdqn.envs.vector.checked import CheckedEnvironments
from jaxdqn.envs.vector.restarts import EnvironmentFailed, Restarts
from jaxdqn.training.host_times import HostTimes
from jaxdqn.training.keys import seed_of, start_keys
from jaxdqn.training.vector_functions import Acting, Draws, KeyBlock, Played, block_length
from jaxdqn.training.vector_programs import VectorPrograms
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


class VectorRunner:
    """Step the environments of a run and call its programs.

    Args:
      trainer: trainer of the run.
      programs: compiled functions of the trainer.
      acting_device: device that chooses the actions; None for the learning devices.
      restarts: restarts that the environments may use, none by default.
    """

    def __init__(
        self,
        trainer: VectorTrainer,
        programs: VectorPrograms,
        acting_device: jax.Device | None = None,
        restarts: Restarts | None = None,
    ) -> None:
        self._config, self._programs = trainer.config, programs
        self._environment = trainer.environment
        self._mapped, self._replicas = trainer.mapped, trainer.replicas
        self._acting_device = acting_device
        self._envs: CheckedEnvironments | None = None
        self._restarts = restarts
        self._block_length = block_length(trainer.config)
        self._learner_thread = ThreadPoolExecutor(1, "learner")
        self._acting: Params = None
        """Parameters for acting; None for the parameters of the state."""
        self.times = HostTimes()
        """Time of the chunks since they were last read."""

    def close(self) -> None:
        """Close the environments."""
        self._learner_thread.shutdown()
        if self._envs is not None:
            self._envs.close()

    def reset(self, seed: int) -> TimeStep:
        """Create the environments if needed, and start an episode in each."""
        self._acting = None
        if self._envs is None:
            self._envs = CheckedEnvironments(
                self._environment, self._config.num_envs, self._restarts
            )
        return self._envs.reset(seed)

    def init(self, key: Array, hyper: Hyper) -> TrainState:
        """Start a run and run its warm-up."""
        timestep = self._divided(self.reset(seed_of(start_keys(key, 0).envs)))
        state = self._programs.init(key, hyper, timestep)
        return self.warm_up(state, self._programs.warm_up_keys(key))

    def restart(self, state: TrainState) -> TrainState:
        """Reset the environments after a resume and return the state with the new episodes."""
        key = state.key[0] if self._mapped else state.key
        return state._replace(actor=self._programs.start(self._divided(self.reset(seed_of(key)))))

    def refill(self, state: TrainState) -> TrainState:
        """Repeat the warm-up with an empty replay; donates the state."""
        key, blocks = self._programs.refill_keys(state.key)
        return self.warm_up(self._programs.empty_replay(state._replace(key=key)), blocks)

    def warm_up(self, state: TrainState, blocks: Array) -> TrainState:
        """Run the iterations of the warm-up without learning. The state is donated."""
        return self.act(state, blocks, self._config.warmup_iterations)

    def act(self, state: TrainState, blocks: Array, iterations: int) -> TrainState:
        """Act for some iterations with keys [blocks, I K] and store the rows, without learning.

        The state is donated.
        """
        position = None
        params = self._to_act(self._programs.begin_chunk(state)[3])
        for done in range(iterations):
            block, index = divmod(done, self._block_length)
            if index == 0:
                draws = self._to_act(
                    self._programs.block(blocks, np.int32(block), state.hyper, state.counters.rows)
                )
                position = self._restart_keys(position)
            played, position = self._act(state, position, draws, params)
            state = self._programs.remember(state, played)
            if self._config.normalize_observations:  # the parameters contain the statistics
                params = self._to_act(self._programs.begin_chunk(state)[3])
        self.times.clear()  # only chunks count
        return state

    def chunk(
        self, state: TrainState, iterations: int
    ) -> tuple[TrainState, tuple[Metrics, Counters]]:
        """Run some iterations and return the state, and the pair of metrics and counters."""
        programs, overlap, started = self._programs, self._config.overlap, time.perf_counter()
        key, hyper, rows, newest, total = programs.begin_chunk(state)
        newest = self._to_act(newest)
        acting, position = newest if self._acting is None else self._acting, None
        learning: Future[Any] | None = None
        keys: KeyBlock | None = None
        for done in range(iterations):
            index = done % self._block_length
            if keys is None or index == 0:
                keys = programs.keys(key, hyper, rows)
                key, rows, draws = keys.last, keys.rows, self._to_act(keys.act)
                position = self._restart_keys(position)
            try:
                played, position = self._act(state, position, draws, acting)
            except EnvironmentFailed as failed:
                if learning is not None:
                    state, total, newest = learning.result()
                raise self._with_state(failed, state, total, done) from failed.__cause__
            if learning is not None:
                state, total, newest = self._result_of(learning)
            acting = newest
            # Dispatch from another thread: JAX would block a later call from the same thread until
            # this long one ends.
            learning = self._learner_thread.submit(
                self._learn, state, total, np.int32(index), keys, played
            )
            if not overlap:
                state, total, newest = self._result_of(learning)
                acting, learning = newest, None
        if learning is not None:
            state, total, newest = self._result_of(learning)
        self._acting = acting if overlap else None
        state, *report = programs.summarize(state, total, np.int32(iterations))
        self.times.total += time.perf_counter() - started
        return state, (report[0], report[1])

    def _learn(
        self, state: TrainState, total: Metrics, index: np.int32, keys: KeyBlock, played: Played
    ) -> tuple[TrainState, Metrics, Params]:
        started = time.perf_counter()
        state, total, params = self._programs.learn(state, total, index, keys, played)
        self.times.learn += time.perf_counter() - started
        return state, total, self._to_act(params)

    def _result_of(self, learning: Future[Any]) -> Any:
        """Wait for the learner thread and return its result."""
        started = time.perf_counter()
        result = learning.result()
        self.times.wait += time.perf_counter() - started
        return result

    def _with_state(
        self, failed: EnvironmentFailed, state: TrainState, total: Metrics, done: int
    ) -> EnvironmentFailed:
        """Return the failure together with the results of the completed iterations of the chunk."""
        if done == 0:
            return EnvironmentFailed(str(failed), state)
        state, *report = self._programs.summarize(state, total, np.int32(done))
        return EnvironmentFailed(str(failed), state, tuple(report), done)

    def _act(
        self,
        state: TrainState,
        position: Position | None,
        draws: Draws,
        params: Params,
    ) -> tuple[Played, Position]:
        """Act K vector steps from the end of the previous iteration.

        Args:
          state: start of acting if ``position`` is None.
          position: result of the previous call. Unlike ``state``, it is available before the
            gradient steps have finished.
          draws: leaves [I K, ...].
          params: parameters for acting.
        """
        assert self._envs is not None
        step, advance, times = self._envs.step, self._programs.advance, self.times
        timesteps, chosen, stored = [], [], []
        started = time.perf_counter()
        for _ in range(self._config.rollout_length):
            if position is None:
                actor = self._to_act(state.actor)
                acting, extras = self._programs.begin(actor, draws, params)
            else:
                acting, extras = advance(*position, draws, params)
            actions = np.asarray(acting.action)
            acted = time.perf_counter()
            with jax.profiler.TraceAnnotation("env"):
                timestep = self._divided(step(actions.reshape(-1)))
            stepped = time.perf_counter()
            times.act, times.env = times.act + acted - started, times.env + stepped - acted
            started = stepped
            position = Position(acting, timestep)
            timesteps.append(timestep)
            chosen.append(actions)
            stored.append(extras)
        assert position is not None
        axis = 1 if self._mapped else 0
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves, axis), *timesteps)
        actions_of: Any = np.stack(chosen, axis)
        extras_and_carry = tuple(stored), acting.carry
        if self._acting_device is not None:
            extras_and_carry = jax.device_get(extras_and_carry)
        return Played(stacked, actions_of, *extras_and_carry), position

    def _to_act(self, tree: PyTree) -> PyTree:
        """Copy arrays to the acting device; without a separate one, return them unchanged."""
        return tree if self._acting_device is None else jax.device_put(tree, self._acting_device)

    def _divided(self, timestep: TimeStep) -> TimeStep:
        """Divide the environments over the replicas, [E, ...] -> [D, E/D, ...]."""
        if not self._mapped:
            return timestep
        size = self._replicas
        return jax.tree.map(lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), timestep)

    def _restart_keys(self, position: Position | None) -> Position | None:
        """Return the position with its step index reset, for a new block of keys."""
        if position is None:
            return None
        step: Any = np.zeros(self._replicas if self._mapped else (), np.int32)
        return position._replace(acting=position.acting._replace(step=step))


class Position(NamedTuple):
    """Acting state between two iterations."""

    acting: Acting
    timestep: TimeStep
