"""Greedy episodes, counted without bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.envs.frame_stack import initial_frames, observed, push_frame
from jaxdqn.types import Agent, Array, Environment, Params, TimeStep

LONGEST_EPISODE = 108_000
"""Environment steps after which an episode without a time limit is cut:
half an hour of a game at 60 frames a second."""
_TOGETHER = 8
"""Steps whose keys are split at once: on CPU each random call is a loop of its own, and one a step
took a seventh of an evaluation on CartPole."""


class EvalInfo(NamedTuple):
    """The first episode of each of N environments."""

    returns: Array
    """[N] float32, undiscounted"""
    lengths: Array
    """[N] int32, environment steps"""


class _Progress(NamedTuple):
    """What the loop over steps carries; leaves [N, ...] but for ``steps``."""

    steps: Array
    """[] int32"""
    env_state: Any
    timestep: TimeStep
    frames: Any
    carry: Any
    running: Array
    """[N] bool; the first episode has not ended."""
    info: EvalInfo


def make_evaluator(
    agent: Agent, environment: Environment, episodes: int, *, frame_stack: int = 1
) -> Callable[[Params, Array], EvalInfo]:
    """Build ``evaluate(params, key) -> EvalInfo``, pure: jit it, or vmap it over parameters.

    Every one of N environments plays its first episode to the end and no other
    counts, so that short episodes weigh no more than long ones. The actions are
    greedy: the largest Q, the first of equals. An episode is cut after the
    environment's time limit, or after ``LONGEST_EPISODE`` steps if it has none.

    Args:
        agent: whose parameters are judged.
        environment: one environment; it is vmapped here.
        episodes: N, episodes an evaluation, in as many environments.
        frame_stack: S, as in training.

    Raises:
        ValueError: if a count is below 1.
    """
    for name, value in (("episodes", episodes), ("frame_stack", frame_stack)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
    begin, advance = _make_play(agent, environment, episodes, frame_stack)

    def evaluate(params: Params, key: Array) -> EvalInfo:
        key_begin, key_advance = jax.random.split(key)

        def advance_together(now: _Progress) -> _Progress:
            keys = jax.random.split(
                jax.random.fold_in(key_advance, now.steps), (_TOGETHER, 1 + episodes)
            )
            return jax.lax.scan(lambda now, keys: (advance(params, keys, now), None), now, keys)[0]

        end = jax.lax.while_loop(
            lambda now: jnp.any(now.running), advance_together, begin(key_begin)
        )
        return end.info

    return evaluate


def play_episode(
    agent: Agent,
    environment: Environment,
    params: Params,
    key: Array,
    *,
    frame_stack: int = 1,
    most_steps: int = LONGEST_EPISODE,
) -> tuple[list[Any], list[float]]:
    """Play one greedy episode and return what was seen, for a picture of it.

    Args:
        agent: who plays.
        environment: where.
        params: of the agent.
        key: consumed.
        frame_stack: S, as in training.
        most_steps: environment steps after which the episode is cut.

    Returns:
        The environment's states, from the first to the one that ends the
        episode, and the reward that led to each (0 for the first).
    """
    begin, advance = _make_play(agent, environment, 1, frame_stack)
    key_begin, key_advance = jax.random.split(key)
    advance = jax.jit(advance)
    now = jax.jit(begin)(key_begin)
    states, rewards = [now.env_state], [0.0]
    while now.running[0] and now.steps < min(most_steps, _limit(environment)):
        now = advance(params, jax.random.split(jax.random.fold_in(key_advance, now.steps), 2), now)
        states.append(now.env_state)
        rewards.append(float(now.timestep.reward[0]))
    return [jax.tree.map(lambda leaf: leaf[0], jax.device_get(state)) for state in states], rewards


def _limit(environment: Environment) -> int:
    return environment.spec.max_episode_steps or LONGEST_EPISODE


def _make_play(
    agent: Agent, environment: Environment, episodes: int, frame_stack: int
) -> tuple[Callable[[Array], _Progress], Callable[[Params, Array, _Progress], _Progress]]:
    """Make ``begin(key)`` and ``advance(params, keys[1 + N], progress)`` of N environments."""
    limit = _limit(environment)

    def begin(key: Array) -> _Progress:
        env_state, timestep = jax.vmap(environment.reset)(jax.random.split(key, episodes))
        return _Progress(
            steps=jnp.int32(0),
            env_state=env_state,
            timestep=timestep,
            frames=initial_frames(timestep.obs, frame_stack),
            carry=agent.initial_carry(episodes),
            running=jnp.ones(episodes, bool),
            info=EvalInfo(jnp.zeros(episodes), jnp.zeros(episodes, jnp.int32)),
        )

    def advance(params: Params, keys: Array, now: _Progress) -> _Progress:
        obs = observed(now.frames, now.timestep.obs)
        # The greedy ones whatever the agent of someone's own does.
        _, carry, act_info = agent.act(keys[0], params, now.carry, obs, now.timestep.first, None)
        actions = jnp.argmax(act_info.q, axis=-1).astype(jnp.int32)
        env_state, timestep = jax.vmap(environment.step)(keys[1:], now.env_state, actions)
        return _Progress(
            steps=now.steps + 1,
            env_state=env_state,
            timestep=timestep,
            frames=push_frame(now.frames, timestep.obs, timestep.first),
            carry=carry,
            running=now.running
            & ~(timestep.terminated | timestep.truncated)
            & (now.steps + 1 < limit),
            info=EvalInfo(
                returns=now.info.returns + jnp.where(now.running, timestep.reward, 0.0),
                lengths=now.info.lengths + now.running.astype(jnp.int32),
            ),
        )

    return begin, advance
