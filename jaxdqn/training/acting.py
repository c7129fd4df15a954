"""The acting half of a step: environments, exploration, and what is counted of episodes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdqn.agent.exploration import epsilon_ladder, epsilon_schedule
from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.frame_stack import initial_frames, observed, push_frame
from jaxdqn.training.metrics import count_step, reduce_metrics
from jaxdqn.types import (
    ActInfo,
    ActorState,
    Agent,
    Array,
    Counter,
    Environment,
    EpisodeStats,
    Exploration,
    Hyper,
    Metrics,
    PyTree,
    Row,
    TrainState,
    counter_float,
)


def reset_actor(key: Array, environment: Environment, agent: Agent, config: Config) -> ActorState:
    """Return the acting side of a device at the start of its run."""
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


def make_act(
    config: Config, environment: Environment, agent: Agent, collectives: Collectives
) -> Callable[[Array, TrainState], tuple[Row, ActorState, Metrics]]:
    """Make the acting half of a step: K vector steps with keys [K, 1 + E], giving rows [K, E].

    Its metrics are of this device alone.
    """
    length = config.rollout_length
    exploration = _make_exploration(config, collectives)

    def vector_step(
        keys: Array, actor: ActorState, state: TrainState, ahead: Array
    ) -> tuple[ActorState, tuple[Row, Metrics]]:
        explore = exploration(state.hyper, state.counters.rows, ahead)
        before = actor.timestep
        if config.epsilon_repeat > 0:
            # No action is carried over from one episode into the next.
            repeat = jnp.where(before.first, 0.0, config.epsilon_repeat * explore.epsilon)
            explore = explore._replace(repeat=repeat, previous=actor.action)
        obs = observed(actor.frames, before.obs)
        actions, carry, info = agent.act(
            keys[0], state.agent.params, actor.carry, obs, before.first, explore
        )
        env_state, after = jax.vmap(environment.step)(keys[1:], actor.env_state, actions)
        row = Row(
            obs=obs if config.algorithm == "pqn" else before.obs,
            first=before.first,
            action=actions,
            reward=after.reward,
            terminated=after.terminated,
            truncated=after.truncated,
            extras=_extras(config, actor, info),
        )
        episode, metrics = count_step(actor.episode, row, ~after.first, explore)
        frames = push_frame(actor.frames, after.obs, after.first)
        return ActorState(env_state, after, frames, carry, episode, actions), (row, metrics)

    def act(keys: Array, state: TrainState) -> tuple[Row, ActorState, Metrics]:
        rows_ahead = jnp.arange(length, dtype=jnp.float32) * config.num_envs
        actor, (rows, metrics) = jax.lax.scan(
            lambda actor, xs: vector_step(xs[0], actor, state, xs[1]),
            state.actor,
            (keys, rows_ahead),
        )
        return rows, actor, reduce_metrics(metrics)

    return act


def _extras(config: Config, actor: ActorState, info: ActInfo) -> PyTree:
    """Return what rows have besides, leaves [E, ...]."""
    if config.algorithm == "pqn":
        return jnp.max(info.q, axis=-1)
    return () if config.recurrent == "none" else actor.carry


def _make_exploration(
    config: Config, collectives: Collectives
) -> Callable[[Hyper, Counter, Array], Exploration]:
    """Make the exploration of each environment, from the rows acted over all devices."""
    warmup_rows = config.warmup_iterations * config.rows_per_iteration
    num_envs = config.envs_per_device

    def exploration(hyper: Hyper, rows: Counter, ahead: Array) -> Exploration:
        acted = counter_float(rows) + ahead
        epsilon = epsilon_schedule(
            config.epsilon_schedule,
            hyper.epsilon_start,
            hyper.epsilon_end,
            config.epsilon_decay_rows,
            acted - warmup_rows,
        )
        if config.epsilon_ladder is None:
            each = jnp.full((num_envs,), epsilon)
        else:
            place = collectives.index() * num_envs + jnp.arange(num_envs, dtype=jnp.int32)
            each = epsilon_ladder(epsilon, config.epsilon_ladder, place, config.num_envs)
        # The warm-up acts at random.
        each = jnp.where(acted < warmup_rows, 1.0, each)
        return Exploration(epsilon=each, temperature=hyper.temperature)

    return exploration
