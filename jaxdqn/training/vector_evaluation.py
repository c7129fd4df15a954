"""Evaluation in environments on the host, by greedy or nearly greedy episodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.agent.exploration import select_actions
from jaxdqn.envs.frame_stack import initial_frames, observed, push_frame
from jaxdqn.envs.vector.base import HostEnvironment, VectorEnvironment
from jaxdqn.training.episode_digest import add_step, empty_digests
from jaxdqn.training.evaluation import LONGEST_EPISODE, EvalInfo
from jaxdqn.training.keys import seed_of
from jaxdqn.training.vector_runner import EnvironmentFailed, failure_text
from jaxdqn.types import Agent, Array, Exploration, Params, TimeStep

MOST_ENVS = 32
"""Environments of an evaluation; each plays several episodes if there are more of these."""


class _Play(NamedTuple):
    """State of the policy; leaves [n, ...]."""

    timestep: TimeStep
    actions: Array
    frames: Any
    carry: Any
    digests: Array


class VectorEvaluator:
    """Plays N episodes with given parameters, in environments that it keeps.

    Each of n environments plays the same number of episodes to their ends, so short episodes have
    no more weight than long ones. An episode is cut after the time limit of the environment, or
    after ``LONGEST_EPISODE`` steps if it has none.

    Args:
      agent: computes the Q-values.
      environment: on the host.
      episodes: N.
      frame_stack: S, as in training.
      most_envs: the greatest n.
      options: of the compiler.
    """

    def __init__(
        self,
        agent: Agent,
        environment: HostEnvironment,
        episodes: int,
        *,
        frame_stack: int = 1,
        most_envs: int = MOST_ENVS,
        options: dict[str, Any] | None = None,
    ) -> None:
        limit = environment.spec.max_episode_steps
        # Without a time limit of its own, an environment whose episode is cut plays no other.
        self._num_envs = episodes if limit is None else min(episodes, most_envs)
        self._limit = limit or LONGEST_EPISODE
        self._quotas = np.full(self._num_envs, episodes // self._num_envs)
        self._quotas[: episodes % self._num_envs] += 1
        self._episodes, self._frame_stack = episodes, frame_stack
        self._agent, self._environment = agent, environment
        self._begin = jax.jit(self._first_actions, compiler_options=options)
        self._advance = jax.jit(self._next_actions, compiler_options=options)
        self._envs: VectorEnvironment | None = None

    def close(self) -> None:
        """Close the environments."""
        envs, self._envs = self._envs, None
        if envs is not None:
            with contextlib.suppress(Exception):  # they may have failed
                envs.close()

    def evaluate(self, params: Params, key: Array, epsilon: float) -> EvalInfo:
        """Return the results of N episodes, leaves [N]. Equal keys give equal episodes.

        Args:
          params: of the agent.
          key: seeds the environments and the random actions.
          epsilon: probability of a uniformly random action.
        """
        try:
            return self._play(params, key, epsilon)
        except Exception as error:
            name = self._environment.spec.name
            raise EnvironmentFailed(failure_text(name, "an evaluation", error)) from error

    def _play(self, params: Params, key: Array, epsilon: float) -> EvalInfo:
        if self._envs is None:
            self._envs = self._environment.make(self._num_envs)
        timestep = self._envs.reset(seed_of(key))
        play = self._begin(params, key, timestep, np.float32(epsilon))
        returns = np.zeros(self._num_envs, np.float64)
        lengths = np.zeros(self._num_envs, np.int64)
        left = self._quotas.copy()
        found: list[tuple[float, int, int]] = []
        count = 0
        while left.any():
            count += 1
            timestep = self._envs.step(np.asarray(play.actions))
            play = self._advance(params, key, np.int32(count), play, timestep, np.float32(epsilon))
            returns += np.where(timestep.first, 0.0, timestep.reward)
            lengths += ~np.asarray(timestep.first)
            ends = timestep.terminated | timestep.truncated | (lengths >= self._limit)
            if not ends.any():
                continue
            digests = np.asarray(play.digests)
            for index in np.flatnonzero(ends):
                if left[index]:
                    left[index] -= 1
                    found.append((returns[index], lengths[index], digests[index]))
            returns[ends], lengths[ends] = 0.0, 0
        columns: Any = [
            np.array(column, dtype)
            for column, dtype in zip(
                zip(*found, strict=True), (np.float32, np.int32, np.uint32), strict=True
            )
        ]
        return EvalInfo(*columns)

    def _first_actions(
        self, params: Params, key: Array, timestep: TimeStep, epsilon: Array
    ) -> _Play:
        play = _Play(
            timestep=timestep,
            actions=jnp.zeros(self._num_envs, jnp.int32),
            frames=initial_frames(timestep.obs, self._frame_stack),
            carry=self._agent.initial_carry(self._num_envs),
            digests=empty_digests(self._num_envs),
        )
        return self._choose(params, key, jnp.int32(0), play, epsilon)

    def _next_actions(
        self,
        params: Params,
        key: Array,
        count: Array,
        play: _Play,
        timestep: TimeStep,
        epsilon: Array,
    ) -> _Play:
        before = play.timestep
        digests = jnp.where(before.first, empty_digests(self._num_envs), play.digests)
        digests = add_step(digests, before.obs, play.actions, timestep.reward)
        frames = push_frame(play.frames, timestep.obs, timestep.first)
        play = play._replace(timestep=timestep, frames=frames, digests=digests)
        return self._choose(params, key, count, play, epsilon)

    def _choose(
        self, params: Params, key: Array, count: Array, play: _Play, epsilon: Array
    ) -> _Play:
        obs, first = observed(play.frames, play.timestep.obs), play.timestep.first
        key = jax.random.fold_in(key, count)
        _, carry, info = self._agent.act(key, params, play.carry, obs, first, None)
        exploration = Exploration(jnp.full(self._num_envs, epsilon), jnp.float32(1))
        actions, _ = select_actions("epsilon_greedy", key, info.q, exploration)
        return play._replace(actions=actions, carry=carry)


def make_vector_evaluator(
    agent: Agent,
    environment: HostEnvironment,
    episodes: int,
    *,
    frame_stack: int = 1,
    epsilon: float = 0.0,
) -> Callable[[Params, Array], EvalInfo]:
    """Make ``evaluate(params, key) -> EvalInfo``, which starts environments and closes them."""

    def evaluate(params: Params, key: Array) -> EvalInfo:
        evaluator = VectorEvaluator(agent, environment, episodes, frame_stack=frame_stack)
        try:
            return evaluator.evaluate(params, key, epsilon)
        finally:
            evaluator.close()

    return evaluate
