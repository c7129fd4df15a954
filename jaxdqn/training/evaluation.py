"""Evaluation by greedy or nearly greedy episodes; short and long ones have equal weight."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.agent.exploration import select_actions
from jaxdqn.agent.masks import act_on
from jaxdqn.envs.autoreset import advance_of, select
from jaxdqn.envs.frame_stack import initial_frames, push_frame
from jaxdqn.losses import legal_values
from jaxdqn.training.episode_digest import add_step, empty_digests
from jaxdqn.types import Agent, Array, Environment, Exploration, Params, PyTree, TimeStep

LONGEST_EPISODE = 108_000
"""Environment steps after which an episode without a time limit is cut: half an hour of a game
at 60 frames a second."""
EPSILON = 0.05
"""Probability of a random action in evaluations that make the episodes of a greedy policy in a
deterministic environment differ."""
_STEPS_PER_SPLIT = 8
"""Steps whose keys come from one split. On CPU every random call is a loop, and one call per step
took a seventh of an evaluation on CartPole."""


class EvalInfo(NamedTuple):
    """Results of the first episode of each of N environments."""

    returns: Array
    """[N] float32, undiscounted"""
    lengths: Array
    """[N] int32, environment steps"""
    digests: Array
    """[N] uint32, of observations, actions and rewards; equal for equal episodes."""
    terminated: PyTree = ()
    """[N] bool, the episode ended in a terminal state and not at a time limit; empty if that is
    not known."""


class _PlayState(NamedTuple):
    """State of the loop over steps; leaves [N, ...] except ``steps``."""

    steps: Array
    """[] int32"""
    env_state: Any
    timestep: TimeStep
    frames: Any
    carry: Any
    running: Array
    """[N] bool, the first episode has not ended."""
    info: EvalInfo


def make_evaluator(
    agent: Agent,
    environment: Environment,
    episodes: int,
    *,
    frame_stack: int = 1,
    epsilon: float = 0.0,
) -> Callable[[Params, Array], EvalInfo]:
    """Make ``evaluate(params, key) -> EvalInfo``, pure: jit it, or vmap it over parameters.

    Each of N environments plays its first episode to the end, and only these episodes
    count, so short episodes have no more weight than long ones. The actions are greedy:
    the largest Q, and the first of equal ones; with ``epsilon`` some are random. An
    episode is cut after the environment's time limit, or after ``LONGEST_EPISODE`` steps if it
    has none.

    Args:
        agent: computes the Q-values.
        environment: one environment; it is vmapped here.
        episodes: N, episodes per evaluation, and as many environments.
        frame_stack: S, as in training.
        epsilon: probability of a uniformly random action.

    Raises:
        ValueError: if a count is below 1, or ``epsilon`` is not between 0 and 1.
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon={epsilon!r}: must be between 0 and 1")
    for name, value in (("episodes", episodes), ("frame_stack", frame_stack)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
    advance = partial(_advance, agent, environment, epsilon)

    def evaluate(params: Params, key: Array) -> EvalInfo:
        key_begin, key_advance = jax.random.split(key)

        def advance_several(state: _PlayState) -> _PlayState:
            keys = jax.random.split(
                jax.random.fold_in(key_advance, state.steps), (_STEPS_PER_SPLIT, 1 + episodes)
            )
            return jax.lax.scan(
                lambda state, keys: (advance(params, keys, state), None), state, keys
            )[0]

        start = _begin(agent, environment, episodes, frame_stack, key_begin)
        return jax.lax.while_loop(lambda state: jnp.any(state.running), advance_several, start).info

    return evaluate


def evaluation_shape(
    agent: Agent, environment: Environment, episodes: int, *, frame_stack: int = 1
) -> _PlayState:
    """Return the shapes of the state of an evaluation; allocate nothing."""
    begin = partial(_begin, agent, environment, episodes, frame_stack)
    return jax.eval_shape(begin, jax.random.key(0))


def play_episode(
    agent: Agent,
    environment: Environment,
    params: Params,
    key: Array,
    *,
    frame_stack: int = 1,
    max_steps: int = LONGEST_EPISODE,
) -> tuple[list[Any], list[float]]:
    """Play one greedy episode and return its states and rewards, to render it.

    Args:
        agent: computes the Q-values.
        environment: one environment.
        params: of the agent.
        key: is consumed.
        frame_stack: S, as in training.
        max_steps: environment steps after which the episode is cut.

    Returns:
        The environment's states, from the first to the one that ends the
        episode, and the reward that led to each (0 for the first).
    """
    key_begin, key_advance = jax.random.split(key)
    advance = jax.jit(partial(_advance, agent, environment, 0.0))
    state = jax.jit(partial(_begin, agent, environment, 1, frame_stack))(key_begin)
    states, rewards = [state.env_state], [0.0]
    while state.running[0] and state.steps < min(max_steps, _episode_limit(environment)):
        keys = jax.random.split(jax.random.fold_in(key_advance, state.steps), 2)
        state = advance(params, keys, state)
        states.append(state.env_state)
        rewards.append(float(state.timestep.reward[0]))
    return [jax.tree.map(lambda leaf: leaf[0], jax.device_get(state)) for state in states], rewards


def _episode_limit(environment: Environment) -> int:
    return environment.spec.max_episode_steps or LONGEST_EPISODE


def _begin(
    agent: Agent, environment: Environment, episodes: int, frame_stack: int, key: Array
) -> _PlayState:
    """Reset N environments."""
    env_state, timestep = jax.vmap(environment.reset)(jax.random.split(key, episodes))
    return _PlayState(
        steps=jnp.int32(0),
        env_state=env_state,
        timestep=timestep,
        frames=initial_frames(timestep.obs, frame_stack),
        carry=agent.initial_carry(episodes),
        running=jnp.ones(episodes, bool),
        info=EvalInfo(
            returns=jnp.zeros(episodes),
            lengths=jnp.zeros(episodes, jnp.int32),
            digests=empty_digests(episodes),
            terminated=jnp.zeros(episodes, bool),
        ),
    )


def _advance(
    agent: Agent,
    environment: Environment,
    epsilon: float,
    params: Params,
    keys: Array,
    state: _PlayState,
) -> _PlayState:
    """Take a step in N environments, greedy but for ``epsilon``.

    ``keys`` [1 + N] are the key of the agent, then one for each environment.
    """
    key_agent, keys_environment = keys[0], keys[1:]
    first, legal = state.timestep.first, state.timestep.legal
    _, carry, act_info = act_on(
        agent, key_agent, params, state.carry, state.frames, state.timestep, None
    )
    # By the Q-values: the actions of a custom agent may not be greedy.
    if epsilon == 0:
        actions = jnp.argmax(legal_values(act_info.q, legal), axis=-1).astype(jnp.int32)
    else:
        exploration = Exploration(jnp.full(len(first), epsilon), jnp.float32(1), legal=legal)
        key_explore = jax.random.fold_in(key_agent, 1)
        actions, _ = select_actions("epsilon_greedy", key_explore, act_info.q, exploration)
    env_state, timestep = _step(environment, keys_environment, state, actions)
    steps, running, info = state.steps + 1, state.running, state.info
    continues = ~(timestep.terminated | timestep.truncated) & (steps < _episode_limit(environment))
    return _PlayState(
        steps=steps,
        env_state=env_state,
        timestep=timestep,
        frames=push_frame(state.frames, timestep.obs, timestep.first),
        carry=carry,
        running=running & continues,
        info=EvalInfo(
            returns=info.returns + jnp.where(running, timestep.reward, 0.0),
            lengths=info.lengths + running.astype(jnp.int32),
            digests=jnp.where(
                running,
                add_step(info.digests, state.timestep.obs, actions, timestep.reward),
                info.digests,
            ),
            terminated=info.terminated | (running & timestep.terminated),
        ),
    )


def _step(
    environment: Environment, keys: Array, state: _PlayState, actions: Array
) -> tuple[Any, TimeStep]:
    """Step N environments, without resets where the environment has a step without them.

    Only first episodes count, so environments keep the state in which theirs has ended.
    """
    advance = advance_of(environment)
    if advance is None:
        return jax.vmap(environment.step)(keys, state.env_state, actions)
    stepped = jax.vmap(advance)(keys, state.env_state, actions)
    env_state, timestep = select(state.running, stepped, (state.env_state, state.timestep))
    return env_state, timestep
