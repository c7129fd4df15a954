"""The acting half of a step: environments, exploration and episode statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn.agent.exploration import epsilon_ladder, epsilon_schedule
from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.autoreset import ResetPool, advance_of, fill_pool, step_from_pool
from jaxdqn.envs.frame_stack import initial_frames, observed, push_frame
from jaxdqn.errors import reject
from jaxdqn.training.learning import Learning, no_extras
from jaxdqn.training.metrics import count_step, reduce_metrics
from jaxdqn.types import (
    ActorState,
    Agent,
    Array,
    Environment,
    EpisodeStats,
    Exploration,
    Metrics,
    Params,
    PyTree,
    Row,
    TimeStep,
    TrainState,
    counter_float,
)


def reset_actor(key: Array, environment: Environment, agent: Agent, config: Config) -> ActorState:
    """Return the state of acting on one device at the start of a run; consumes ``key``."""
    num_envs = config.envs_per_device
    env_state, timestep = jax.vmap(environment.reset)(jax.random.split(key, num_envs))
    return ActorState(
        env_state=env_state,
        timestep=timestep,
        frames=initial_frames(timestep.obs, config.frame_stack),
        carry=agent.initial_carry(num_envs),
        episode=EpisodeStats(jnp.zeros(num_envs, jnp.float32), jnp.zeros(num_envs, jnp.int32)),
        action=jnp.zeros(num_envs, jnp.int32),
    )


def act_key_shape(config: Config) -> tuple[int, int]:
    """Return the shape [K, 1 + E] of the keys that ``act`` consumes."""
    return config.rollout_length, 1 + config.envs_per_device


def make_act(
    config: Config,
    environment: Environment,
    agent: Agent,
    learning: Learning,
    collectives: Collectives,
) -> Callable[[Array, TrainState], tuple[Row, ActorState, Metrics]]:
    """Make ``act(keys[K, 1 + E], state) -> (rows[K, E], actor_state, metrics)``, K vector steps.

    The keys of a vector step are that of the agent, then one for each environment. The metrics
    are of this device only.
    """
    exploration_of = _make_exploration(config, collectives)
    fill, step_envs = _make_steps(config, environment)

    def vector_step(
        keys: Array, acting: tuple[ActorState, PyTree], state: TrainState, row_offset: Array
    ) -> tuple[tuple[ActorState, PyTree], tuple[Row, Metrics]]:
        actor, pool = acting
        key_agent, keys_environment = keys[0], keys[1:]
        exploration = exploration_of(state, actor, row_offset)
        before = actor.timestep
        obs = observed(actor.frames, before.obs)
        actions, carry, info = agent.act(
            key_agent, state.agent.params, actor.carry, obs, before.first, exploration
        )
        env_state, after, pool = step_envs(pool, keys_environment, actor, actions)
        row = Row(
            obs=obs if learning.stacked else before.obs,
            first=before.first,
            action=actions,
            reward=after.reward,
            terminated=after.terminated,
            truncated=after.truncated,
            extras=learning.extras(actor, info),
        )
        episode, metrics = count_step(actor.episode, row, ~after.first, exploration)
        frames = push_frame(actor.frames, after.obs, after.first)
        actor = ActorState(env_state, after, frames, carry, episode, actions)
        return (actor, pool), (row, metrics)

    def act(keys: Array, state: TrainState) -> tuple[Row, ActorState, Metrics]:
        # Rows over all devices from the start of the iteration to each of its vector steps.
        row_offsets = jnp.arange(config.rollout_length, dtype=jnp.float32) * config.num_envs
        (actor, _), (rows, metrics) = jax.lax.scan(
            lambda acting, inputs: vector_step(inputs[0], acting, state, inputs[1]),
            (state.actor, fill(keys)),
            (keys, row_offsets),
        )
        return rows, actor, reduce_metrics(metrics)

    return act


def _make_steps(config: Config, environment: Environment) -> tuple[Any, Any]:
    """Make ``fill(keys[K, 1 + E]) -> pool`` and the step of E environments.

    Without pooled resets the pool is empty. The step is ``step_envs(pool, keys[E], actor,
    actions[E]) -> (env_state, timestep, pool)``.
    """

    def step_every(
        pool: PyTree, keys: Array, actor: ActorState, actions: Array
    ) -> tuple[PyTree, TimeStep, PyTree]:
        return *jax.vmap(environment.step)(keys, actor.env_state, actions), pool

    if config.reset == "every-step":
        return lambda keys: (), step_every
    if advance_of(environment) is None:
        reject("reset", "pooled", "'every-step' for an environment whose step cannot be separated "
               "from its reset; make_environment builds one that can")  # fmt: skip

    def step_pooled(
        pool: ResetPool, keys: Array, actor: ActorState, actions: Array
    ) -> tuple[PyTree, TimeStep, ResetPool]:
        return step_from_pool(environment, pool, keys, actor.env_state, actor.timestep, actions)

    return lambda keys: fill_pool(environment, keys[0, 0], config.resets_in_pool), step_pooled


def example_extras(learning: Learning, agent: Agent, params: Params, actor: ActorState) -> PyTree:
    """Return the extras of one environment's row, as zeros in their shapes; computes nothing."""
    if learning.extras is no_extras:
        return ()

    def extras(params: Params, actor: ActorState) -> PyTree:
        key, first = jax.random.key(0), actor.timestep.first
        obs = observed(actor.frames, actor.timestep.obs)
        return learning.extras(actor, agent.act(key, params, actor.carry, obs, first, None)[2])

    shapes = jax.eval_shape(extras, params, actor)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), shapes)


def _make_exploration(
    config: Config, collectives: Collectives
) -> Callable[[TrainState, ActorState, Array], Exploration]:
    """Make ``exploration_of(state, actor_state, row_offset)``, for one vector step.

    Epsilon is a function of the rows over all devices: those that ``state`` counts, plus
    ``row_offset`` [] float32.
    """
    warmup_rows = config.warmup_iterations * config.rows_per_iteration
    num_envs = config.envs_per_device

    def exploration_of(state: TrainState, actor: ActorState, row_offset: Array) -> Exploration:
        hyper = state.hyper
        rows = counter_float(state.counters.rows) + row_offset
        epsilon = epsilon_schedule(
            config.epsilon_schedule,
            hyper.epsilon_start,
            hyper.epsilon_end,
            config.epsilon_decay_rows,
            rows - warmup_rows,
        )
        if config.epsilon_ladder is None:
            epsilons = jnp.full((num_envs,), epsilon)
        else:
            index = collectives.index() * num_envs + jnp.arange(num_envs, dtype=jnp.int32)
            epsilons = epsilon_ladder(epsilon, config.epsilon_ladder, index, config.num_envs)
        # The warm-up acts at random.
        epsilons = jnp.where(rows < warmup_rows, 1.0, epsilons)
        exploration = Exploration(epsilon=epsilons, temperature=hyper.temperature)
        if config.epsilon_repeat == 0:
            return exploration
        # An action never repeats from one episode into the next.
        repeat = jnp.where(actor.timestep.first, 0.0, config.epsilon_repeat * epsilons)
        return exploration._replace(repeat=repeat, previous=actor.action)

    return exploration_of
