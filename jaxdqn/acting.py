"""The acting half of a step: environments, exploration, and what is counted of episodes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdqn.config import Config
from jaxdqn.envs.frames import initial_frames, observed, push_frame
from jaxdqn.exploration import epsilon_ladder, epsilon_schedule
from jaxdqn.types import (
    SUMMED_METRICS,
    ActInfo,
    ActorState,
    Agent,
    Array,
    Collectives,
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

_COUNTED = ("rows", "env_steps", "episodes", "return_sum", "length_sum")
"""What each device counts for itself."""
_NEVER = 2**30
"""Above every number of gradient steps in a chunk."""


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
        episode, metrics = _count(actor.episode, row, ~after.first, explore)
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


def reduce_metrics(metrics: Metrics) -> Metrics:
    """Add up, or average, metrics over their leading axis, which is in the order of time."""

    def reduce(name: str, leaf: Array) -> Array:
        if name in SUMMED_METRICS:
            return jnp.sum(leaf, axis=0, dtype=leaf.dtype)
        if name == "first_skipped":
            # The steps before that iteration, and those of its own before the skipped one.
            where = jnp.argmax(metrics.skipped > 0, axis=0)
            before = jnp.cumsum(metrics.gradient_steps, axis=0) - metrics.gradient_steps
            return (before + leaf)[where]
        return jnp.mean(leaf, axis=0)

    return Metrics(**{name: reduce(name, leaf) for name, leaf in metrics._asdict().items()})


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
            config.epsilon_decay_steps,
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


def _count(
    episode: EpisodeStats, row: Row, stepped: Array, explore: Exploration
) -> tuple[EpisodeStats, Metrics]:
    """Follow the episodes through one vector step; ``stepped`` [E] is false for resets."""
    ends = row.terminated | row.truncated
    episode_return = episode.episode_return + jnp.where(stepped, row.reward, 0.0)
    episode_length = episode.episode_length + stepped.astype(jnp.int32)
    zero = jnp.float32(0)
    metrics = Metrics(
        rows=jnp.int32(stepped.size),
        env_steps=jnp.sum(stepped, dtype=jnp.int32),
        gradient_steps=jnp.int32(0),
        episodes=jnp.sum(ends, dtype=jnp.int32),
        return_sum=jnp.sum(jnp.where(ends, episode_return, 0.0)),
        length_sum=jnp.sum(jnp.where(ends, episode_length, 0).astype(jnp.float32)),
        skipped=jnp.int32(0),
        first_skipped=jnp.int32(0),
        lost=jnp.int32(0),
        averagings=jnp.int32(0),
        gap_sum=zero,
        loss=zero,
        grad_norm=zero,
        q_mean=zero,
        epsilon=jnp.mean(explore.epsilon),
    )
    episode = EpisodeStats(
        episode_return=jnp.where(ends, 0.0, episode_return),
        episode_length=jnp.where(ends, 0, episode_length),
    )
    return episode, metrics


def over_devices(metrics: Metrics, collectives: Collectives) -> Metrics:
    """Return the metrics of all devices together, of each one's own."""
    summed = {name: getattr(metrics, name) for name in _COUNTED}
    most = {name: getattr(metrics, name) for name in ("skipped", "lost")}
    # The least of the firsts, which are void where nothing was skipped.
    most["first_skipped"] = -jnp.where(metrics.skipped > 0, metrics.first_skipped, _NEVER)
    most = collectives.max(most)
    first = jnp.where(most["skipped"] > 0, -most["first_skipped"], 0)
    means = {name: getattr(metrics, name) for name in ("loss", "grad_norm", "q_mean", "epsilon")}
    return metrics._replace(
        **collectives.sum(summed), **{**most, "first_skipped": first}, **collectives.mean(means)
    )
