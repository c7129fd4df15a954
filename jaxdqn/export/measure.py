"""Measurements of an exported policy: action agreement with another policy, and return."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.agent.exploration import select_actions
from jaxdqn.agent.masks import act_on
from jaxdqn.envs.frame_stack import initial_frames, push_frame
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.export.serialized import Policy
from jaxdqn.training.evaluation import make_evaluator
from jaxdqn.training.vector_evaluation import make_vector_evaluator
from jaxdqn.types import Array, Environment, Exploration, TimeStep

_ENVS = 50
EPSILON = 0.05
"""Epsilon of the policy that collects observations, so that these also include states that the
greedy policy does not visit."""


class Return(NamedTuple):
    """Mean return over N greedy episodes."""

    mean: float
    standard_error: float


def mean_return(
    policy: Policy, environment: Environment | HostEnvironment, episodes: int, seed: int = 0
) -> Return:
    """Return the mean return of a policy, and its standard error.

    Args:
        policy: policy that plays greedily.
        environment: environment on the device or on the host.
        episodes: N, number of episodes, at least 2.
        seed: seed of the episodes.
    """
    on_host = isinstance(environment, HostEnvironment)
    make: Any = make_vector_evaluator if on_host else make_evaluator
    evaluate = make(policy.agent, environment, episodes, frame_stack=policy.frame_stack)
    evaluate = evaluate if on_host else jax.jit(evaluate)
    returns = np.asarray(evaluate(policy.params, jax.random.key(seed)).returns, np.float64)
    return Return(float(returns.mean()), float(returns.std(ddof=1) / math.sqrt(episodes)))


def agreement(
    policy: Policy,
    other: Policy,
    environment: Environment | HostEnvironment,
    observations: int = 10_000,
    seed: int = 0,
) -> float:
    """Return the fraction of observations on which two policies take the same greedy action.

    The first policy plays, epsilon-greedy with epsilon ``EPSILON``. Both policies receive all
    observations in order, and keep separate frame stacks and carries.

    Args:
        policy: policy that plays.
        other: policy to compare with.
        environment: environment on the device or on the host.
        observations: number of observations, rounded up to complete vector steps.
        seed: seed of the episodes.
    """
    key, key_reset = jax.random.split(jax.random.key(seed))
    reset, step, close = _functions(environment, _ENVS)
    env_state, timestep = reset(key_reset)
    first_of, act = zip(*map(_actor, (policy, other)), strict=True)
    states = [begin(timestep) for begin in first_of]
    equal, steps = 0, -(-observations // _ENVS)
    try:
        for index in range(steps):
            key_act, key_step = jax.random.split(jax.random.fold_in(key, index))
            greedy, explored, states[0] = act[0](key_act, states[0], timestep)
            compared, _, states[1] = act[1](key_act, states[1], timestep)
            equal += int(np.sum(np.asarray(greedy) == np.asarray(compared)))
            env_state, timestep = step(key_step, env_state, explored)
    finally:
        close()
    return equal / (steps * _ENVS)


def _actor(policy: Policy) -> tuple[Any, Any]:
    """Return ``begin(timestep) -> state`` and ``act(key, state, timestep) -> (a, b, state)``.

    ``a`` [E] are the greedy actions and ``b`` [E] the actions with exploration.
    """
    agent = policy.agent

    def begin(timestep: TimeStep) -> Any:
        # ``act`` pushes the first observation again, which clears the stack because ``first`` is
        # True.
        frames = initial_frames(jnp.asarray(timestep.obs), policy.frame_stack)
        return frames, agent.initial_carry(len(timestep.first))

    @jax.jit
    def act(key: Array, state: Any, timestep: TimeStep) -> Any:
        frames, carry = state
        key_act, key_explore = jax.random.split(key)
        frames = push_frame(frames, timestep.obs, timestep.first)
        actions, carry, info = act_on(agent, key_act, policy.params, carry, frames, timestep, None)
        exploration = Exploration(
            jnp.full(len(timestep.first), EPSILON, jnp.float32),
            jnp.float32(1),
            legal=timestep.legal,
        )
        explored, _ = select_actions("epsilon_greedy", key_explore, info.q, exploration)
        return actions, explored, (frames, carry)

    return begin, act


def _functions(environment: Environment | HostEnvironment, num_envs: int) -> tuple[Any, Any, Any]:
    """Return ``reset(key)``, ``step(key, state, actions)`` and ``close()`` of E environments."""
    if isinstance(environment, HostEnvironment):
        envs = environment.to_evaluate().make(num_envs)

        def reset_host(key: Array) -> tuple[None, TimeStep]:
            return None, envs.reset(int(jax.random.randint(key, (), 0, 2**31 - 1)))

        def step_host(key: Array, state: None, actions: Array) -> tuple[None, TimeStep]:
            return None, envs.step(np.asarray(actions))

        return reset_host, step_host, envs.close

    @jax.jit
    def reset(key: Array) -> Any:
        return jax.vmap(environment.reset)(jax.random.split(key, num_envs))

    @jax.jit
    def step(key: Array, state: Any, actions: Array) -> Any:
        return jax.vmap(environment.step)(jax.random.split(key, num_envs), state, actions)

    return reset, step, lambda: None
