"""The learning half of a step: M gradient steps, on what the replay gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.averaging import make_average
from jaxdqn.config import Config
from jaxdqn.guard import keep_finite
from jaxdqn.replay import importance_weights, make_prioritized, make_uniform
from jaxdqn.types import (
    ALONE,
    Agent,
    AgentState,
    Array,
    Batch,
    Collectives,
    LearnInfo,
    PyTree,
    Replay,
    Row,
    SampleInfo,
    TrainState,
    counter_float,
)

_PRIORITY_OFFSET = 1e-6
"""Epsilon of Schaul et al. 2016, section 3.3: no row is left out for an error of zero."""

GradientStep = Callable[[TrainState, PyTree], tuple[TrainState, tuple[LearnInfo, Array]]]
"""``(state, one) -> (state, (info, skipped [] bool))``"""


class Learning(NamedTuple):
    """How a member of the family remembers rows and learns from them.

    ``init``, ``remember`` and ``prepare`` are of one device.
    """

    init: Callable[[Row], PyTree]
    """``init(example_row) -> what TrainState.replay begins as``"""
    remember: Callable[[PyTree, Row], PyTree]
    """``remember(replay, rows[K, E]) -> replay``"""
    num_keys: int
    prepare: Callable[[Array, TrainState, Row], tuple[GradientStep, PyTree]]
    """``prepare(keys, state, rows) -> (gradient_step, each)``: what each of the M gradient steps
    of an iteration is given, leaves [M, ...], and what they do with it."""


def make_learning(config: Config, agent: Agent, collectives: Collectives) -> Learning:
    """Make the learning of DQN: minibatches from a replay."""
    replay, steps = make_replay(config), config.gradient_steps_per_iteration
    weigh = _make_weigh(config, collectives)
    update = make_update(config, agent, collectives)

    def gradient_step(state: TrainState, keys: Array) -> tuple[TrainState, tuple[LearnInfo, Array]]:
        batch, drawn = replay.sample(keys[0], state.replay, state.hyper.gamma)
        learner, info, skipped = update(keys[1], state, batch, weigh(state, drawn))
        replayed = replay.update(state.replay, drawn.indices, _priorities(state, info))
        # The TD errors have gone into the replay; M times B of them are not kept.
        info = info._replace(abs_td=jnp.float32(0))
        return state._replace(agent=learner, replay=replayed), (info, skipped)

    return Learning(
        init=replay.init,
        remember=replay.add,
        num_keys=steps * 2,
        prepare=lambda keys, state, rows: (gradient_step, keys.reshape(steps, 2)),
    )


def make_update(
    config: Config, agent: Agent, collectives: Collectives
) -> Callable[[Array, TrainState, Batch, Array], tuple[AgentState, LearnInfo, Array]]:
    """Make ``update(key, state, batch, weights[B]) -> (learner, info, skipped)``.

    One gradient step of the agent, and whether ([] bool) the guard undid it.
    """
    deciders = deciders_of(config, collectives)

    def update(
        key: Array, state: TrainState, batch: Batch, weights: Array
    ) -> tuple[AgentState, LearnInfo, Array]:
        learner, info = agent.learn(key, state.agent, batch, weights, hyper=state.hyper)
        if config.guard == "off":
            return learner, info, jnp.bool_(False)
        kept, skipped = keep_finite(
            state.agent, learner, info, deciders, periodic=config.has_periodic_target
        )
        return kept, info, skipped

    return update


def deciders_of(config: Config, collectives: Collectives) -> Collectives:
    """Return who a replica decides with: replicas that are averaged later need not agree before."""
    return collectives if config.average_every is None else ALONE


def make_learn(
    config: Config, learning: Learning, collectives: Collectives
) -> Callable[[Array, TrainState, Row], tuple[TrainState, dict[str, Array]]]:
    """Make all the learning of an iteration, ``learn(keys, state, rows[K, E])``.

    Where parameters are averaged within an iteration it does that too. It gives the metrics
    of learning, of this device alone.
    """
    steps, every = config.gradient_steps_per_iteration, config.average_every
    average = make_average(config, collectives)

    def learn(keys: Array, state: TrainState, rows: Row) -> tuple[TrainState, dict[str, Array]]:
        gradient_step, each = learning.prepare(keys, state, rows)

        def many_and_average(state: TrainState, each: PyTree) -> tuple[TrainState, Any]:
            state, learned = jax.lax.scan(gradient_step, state, each)
            learner, gap = average(state.agent)
            return state._replace(agent=learner), (learned, gap)

        averaged = {}
        if every is None or every > steps:
            state, (infos, skipped) = jax.lax.scan(gradient_step, state, each)
        else:
            groups = jax.tree.map(
                lambda leaf: leaf.reshape(steps // every, every, *leaf.shape[1:]), each
            )
            state, ((infos, skipped), gaps) = jax.lax.scan(many_and_average, state, groups)
            averaged = {"averagings": jnp.int32(steps // every), "gap_sum": jnp.sum(gaps)}
        return state, {
            "skipped": jnp.sum(skipped, dtype=jnp.int32),
            "first_skipped": jnp.argmax(skipped.ravel()).astype(jnp.int32),
            "loss": jnp.mean(infos.loss),
            "grad_norm": jnp.mean(infos.grad_norm),
            "q_mean": jnp.mean(infos.q_mean),
            **averaged,
        }

    return learn


def make_replay(config: Config) -> Replay:
    """Make the replay of one device that a configuration describes."""
    make = make_prioritized if config.replay == "prioritized" else make_uniform
    return make(
        num_envs=config.envs_per_device,
        rows_per_env=config.replay_rows,
        rows_per_add=config.rollout_length,
        batch_size=config.batch_per_device * config.accumulate,
        n_step=config.n_step,
        frame_stack=config.frame_stack,
    )


def _priorities(state: TrainState, info: LearnInfo) -> Array:
    """Return the priorities [B] that a gradient step gives its batch.

    What is not finite must not become one. That they depend on the gradient's norm has a
    second use: then everything that reads the priorities of before comes before their
    writing, and the compiler need not copy them.
    """
    sound = jnp.isfinite(info.loss) & jnp.isfinite(info.grad_norm)
    abs_td = jnp.where(sound & jnp.isfinite(info.abs_td), info.abs_td, 0.0)
    return (abs_td + _PRIORITY_OFFSET) ** state.hyper.priority_exponent


def _make_weigh(
    config: Config, collectives: Collectives
) -> Callable[[TrainState, SampleInfo], Array]:
    """Make the weights [B] of a batch's losses, by how it was drawn."""
    if config.replay == "uniform":
        return lambda state, drawn: jnp.ones_like(drawn.probabilities)
    greatest = deciders_of(config, collectives).max

    def weigh(state: TrainState, drawn: SampleInfo) -> Array:
        done = jnp.minimum(counter_float(state.counters.rows) / float(config.total_steps), 1.0)
        exponent = state.hyper.importance_exponent
        exponent = exponent + (1.0 - exponent) * done
        return importance_weights(drawn.probabilities, exponent, greatest)

    return weigh
