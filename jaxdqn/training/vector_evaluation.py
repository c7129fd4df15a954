"""Evaluation in environments on the host, over greedy or epsilon-greedy episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.agent.exploration import select_actions
from jaxdqn.agent.masks import act_on
from jaxdqn.envs.frame_stack import initial_frames, push_frame
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.envs.vector.checked import CheckedEnvironments
from jaxdqn.envs.vector.restarts import EnvironmentFailed, Restarts
from jaxdqn.training.episode_digest import add_step, empty_digests
from jaxdqn.training.evaluation import LONGEST_EPISODE, EvalInfo
from jaxdqn.training.keys import seed_of
from jaxdqn.types import Agent, Array, Exploration, Params, TimeStep

_ROUND, _RESTART = 2**31, 2**31 + 1
"""Indices for ``fold_in`` that exceed every number of vector steps."""


class EvaluationStopped(Exception):
    """Raised when a stop request aborts an evaluation, which then has no result."""


_Episode = tuple[float, int, int, bool]
"""Return, length, digest, and True if the episode terminated"""


class PlayState(NamedTuple):
    """State of evaluation in n environments; leaves [n, ...]."""

    timestep: TimeStep
    actions: Array
    frames: Any
    carry: Any
    digests: Array


class PlayPrograms(NamedTuple):
    """Functions of an evaluation in n environments, pure or compiled."""

    begin: Any
    """``begin(params, key, timestep, epsilon) -> play``: choose the first actions"""
    advance: Any
    """``advance(params, key, count, play, timestep, epsilon) -> play``: choose the actions after
    ``count`` vector steps"""


def envs_of(environment: HostEnvironment, episodes: int) -> int:
    """Return n, the number of environments for an evaluation of N episodes."""
    return min(episodes, environment.most_eval_envs)


def make_play(agent: Agent, num_envs: int, *, frame_stack: int = 1) -> PlayPrograms:
    """Make the functions of an epsilon-greedy evaluation in n environments."""

    def choose(
        params: Params, key: Array, count: Array, play: PlayState, epsilon: Array
    ) -> PlayState:
        key_act, key_explore = jax.random.split(jax.random.fold_in(key, count))
        timestep = play.timestep
        _, carry, info = act_on(agent, key_act, params, play.carry, play.frames, timestep, None)
        exploration = Exploration(
            jnp.full(num_envs, epsilon, jnp.float32), jnp.float32(1), legal=timestep.legal
        )
        actions, _ = select_actions("epsilon_greedy", key_explore, info.q, exploration)
        return play._replace(actions=actions, carry=carry)

    def begin(params: Params, key: Array, timestep: TimeStep, epsilon: Array) -> PlayState:
        play = PlayState(
            timestep=timestep,
            actions=jnp.zeros(num_envs, jnp.int32),
            frames=initial_frames(timestep.obs, frame_stack),
            carry=agent.initial_carry(num_envs),
            digests=empty_digests(num_envs),
        )
        return choose(params, key, jnp.int32(0), play, epsilon)

    def advance(
        params: Params,
        key: Array,
        count: Array,
        play: PlayState,
        timestep: TimeStep,
        epsilon: Array,
    ) -> PlayState:
        before = play.timestep
        digests = jnp.where(before.first, empty_digests(num_envs), play.digests)
        digests = add_step(digests, before.obs, play.actions, timestep.reward)
        frames = push_frame(play.frames, timestep.obs, timestep.first)
        play = play._replace(timestep=timestep, frames=frames, digests=digests)
        return choose(params, key, count, play, epsilon)

    return PlayPrograms(begin, advance)


class VectorEvaluator:
    """Evaluator that reuses its environments.

    Each of n environments plays the same number of complete episodes, so short episodes get no more
    weight than long ones. Episodes without a time limit are cut after ``LONGEST_EPISODE`` steps.
    Because a single environment cannot be reset, each round of n episodes then starts with a reset
    of all environments.

    Args:
      environment: the host environment.
      programs: compiled functions for n environments.
      episodes: N, number of episodes.
      num_envs: n, as returned by ``envs_of``.
      restarts: restarts that the environments may use, none by default. After a failure they are
        created again, and the episodes of the round are repeated.
    """

    stop: Callable[[], bool] = staticmethod(lambda: False)
    """Polled before every step; the evaluation raises ``EvaluationStopped`` if it returns True."""

    def __init__(
        self,
        environment: HostEnvironment,
        programs: PlayPrograms,
        episodes: int,
        num_envs: int,
        *,
        restarts: Restarts | None = None,
    ) -> None:
        self._environment, self._programs, self._num_envs = environment, programs, num_envs
        self._quotas = _quotas(episodes, num_envs, environment.spec.max_episode_steps)
        self._limit = environment.spec.max_episode_steps or LONGEST_EPISODE
        self._envs: CheckedEnvironments | None = None
        self._restarts = restarts or Restarts()

    def close(self) -> None:
        """Close the environments."""
        if self._envs is not None:
            self._envs.close()

    def evaluate(self, params: Params, key: Array, epsilon: float) -> EvalInfo:
        """Return the results of N episodes, leaves [N]. Equal keys give equal episodes.

        Args:
          params: parameters of the agent.
          key: seed of the environments and of the random actions.
          epsilon: probability of a uniformly random action.

        Raises:
          EvaluationStopped: if ``stop`` returns True.
        """
        found: list[_Episode] = []
        for index, quota in enumerate(self._quotas):
            of_round = _other_key(key, _ROUND, index) if index else key
            found += self._play_or_restart(params, of_round, np.float32(epsilon), quota)
        columns: list[Any] = [
            np.array(column, dtype)
            for column, dtype in zip(
                zip(*found, strict=True), (np.float32, np.int32, np.uint32, bool), strict=True
            )
        ]
        return EvalInfo(*columns)

    def _play_or_restart(
        self, params: Params, key: Array, epsilon: np.float32, quota: np.ndarray
    ) -> list[_Episode]:
        while True:
            try:
                return self._play(params, key, epsilon, quota.copy())
            except EnvironmentFailed as failed:
                number = self._restarts.take(failed)
                if number is None:
                    raise
                self.close()
                self._envs, key = None, _other_key(key, _RESTART, number)

    def _play(
        self, params: Params, key: Array, epsilon: np.float32, left: np.ndarray
    ) -> list[_Episode]:
        """Reset the environments and play ``left[i]`` episodes in environment i."""
        if self._envs is None:
            self._envs = CheckedEnvironments(self._environment.to_evaluate(), self._num_envs)
        timestep = self._envs.reset(seed_of(key))
        play = self._programs.begin(params, key, timestep, epsilon)
        returns = np.zeros(self._num_envs, np.float64)
        lengths = np.zeros(self._num_envs, np.int64)
        found: list[_Episode] = []
        count = 0
        while left.any():
            if self.stop():
                raise EvaluationStopped
            count += 1
            timestep = self._envs.step(np.asarray(play.actions))
            play = self._programs.advance(params, key, np.int32(count), play, timestep, epsilon)
            returns += np.where(timestep.first, 0.0, timestep.reward)
            lengths += ~np.asarray(timestep.first)
            ends = timestep.terminated | timestep.truncated | (lengths >= self._limit)
            if not ends.any():
                continue
            digests = np.asarray(play.digests)
            for index in np.flatnonzero(ends & (left > 0)):
                left[index] -= 1
                terminated = bool(timestep.terminated[index])
                found.append((returns[index], lengths[index], digests[index], terminated))
            returns[ends], lengths[ends] = 0.0, 0
        return found


def _other_key(key: Array, stream: int, index: int) -> Array:
    """Derive a key that no vector step uses (a vector step folds its count into the key)."""
    return jax.random.fold_in(jax.random.fold_in(key, stream), index)


def _quotas(episodes: int, num_envs: int, limit: int | None) -> list[np.ndarray]:
    """Return, for each round, the number of episodes of each environment, [n]."""
    each = np.full(num_envs, episodes // num_envs)
    each[: episodes % num_envs] += 1
    if limit is not None:
        return [each]
    return [(each > played).astype(each.dtype) for played in range(int(each.max()))]


def make_vector_evaluator(
    agent: Agent,
    environment: HostEnvironment,
    episodes: int,
    *,
    frame_stack: int = 1,
    epsilon: float = 0.0,
) -> Callable[[Params, Array], EvalInfo]:
    """Make ``evaluate(params, key) -> EvalInfo``, which creates and closes the environments."""

    def evaluate(params: Params, key: Array) -> EvalInfo:
        num_envs = envs_of(environment, episodes)
        programs = make_play(agent, num_envs, frame_stack=frame_stack)
        jitted = PlayPrograms(*map(jax.jit, programs))
        evaluator = VectorEvaluator(environment, jitted, episodes, num_envs)
        try:
            return evaluator.evaluate(params, key, epsilon)
        finally:
            evaluator.close()

    return evaluate
