"""Evaluation over greedy or epsilon-greedy episodes, all with the same weight."""

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
"""Limit of environment steps for an episode without a time limit: half an hour of play at 60 frames
per second."""
EPSILON = 0.05
"""Probability of a random action in the additional evaluation of deterministic environments, where
all greedy episodes would be equal."""
_STEPS_PER_SPLIT = 8
"""Number of steps whose keys come from one split. On CPU every random call compiles to a loop; one
call per step took a seventh of the time of an evaluation on CartPole."""


class EvalInfo(NamedTuple):
    """Results of the first episode of each of N environments."""

    returns: Array
    """[N] float32, undiscounted"""
    lengths: Array
    """[N] int32, environment steps"""
    digests: Array
    """[N] uint32, hash of observations, actions and rewards; equal for equal episodes."""
    terminated: PyTree = ()
    """[N] bool, True if the episode ended in a terminal state, False if a limit cut it; empty if
    this is unknown."""


class _PlayState(NamedTuple):
    """State of the loop over steps; leaves [N, ...] except ``steps``."""

    steps: Array
    """[] int32"""
    env_state: Any
    timestep: TimeStep
    frames: Any
    carry: Any
    running: Array
    """[N] bool, True until the first episode of the environment ends."""
    info: EvalInfo


def make_evaluator(
    agent: Agent,
    environment: Environment,
    episodes: int,
    *,
    frame_stack: int = 1,
    epsilon: float = 0.0,
) -> Callable[[Params, Array], EvalInfo]:
    """Make ``evaluate(params, key) -> EvalInfo``, a pure function to jit or vmap over parameters.

    Each of N environments plays one episode to its end. Only this first episode counts, so short
    episodes get no more weight than long ones. The action is the first one with the largest Q,
    or a random one with probability ``epsilon``. An episode is cut at the environment's time
    limit, or after ``LONGEST_EPISODE`` steps if there is none.

    Args:
        agent: computes the Q-values.
        environment: a single environment, which this function vmaps.
        episodes: N, the number of episodes and of parallel environments.
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
    """Return the shapes of the state of an evaluation, without allocating it."""
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
    """Play one greedy episode and return its states and rewards for rendering.

    Args:
        agent: computes the Q-values.
        environment: one environment.
        params: parameters of the agent.
        key: random key; consumed.
        frame_stack: S, as in training.
        max_steps: environment steps after which the episode is cut.

    Returns:
        The environment states from the reset to the end of the episode, and the reward received on
        reaching each state (0 for the first).
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
            returns=jnp.zeros(episodes, jnp.float32),
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
    """Take an epsilon-greedy step in N environments.

    ``keys`` [1 + N] holds the key of the agent, then one for each environment.
    """
    key_agent, keys_environment = keys[0], keys[1:]
    first, legal = state.timestep.first, state.timestep.legal
    _, carry, act_info = act_on(
        agent, key_agent, params, state.carry, state.frames, state.timestep, None
    )
    # Computed from the Q-values, because a custom agent's actions need not be greedy.
    if epsilon == 0:
        actions = jnp.argmax(legal_values(act_info.q, legal), axis=-1).astype(jnp.int32)
    else:
        exploration = Exploration(
            jnp.full(len(first), epsilon, jnp.float32), jnp.float32(1), legal=legal
        )
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
    """Step N environments, skipping autoreset if the environment has a step without it.

    Only first episodes count, so an environment then keeps the final state of its episode.
    """
    advance = advance_of(environment)
    if advance is None:
        return jax.vmap(environment.step)(keys, state.env_state, actions)
    stepped = jax.vmap(advance)(keys, state.env_state, actions)
    env_state, timestep = select(state.running, stepped, (state.env_state, state.timestep))
    return env_state, timestep
