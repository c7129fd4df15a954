"""The learning half of a step: M gradient steps, on what the replay gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.communication.averaging import make_average
from jaxdqn.communication.collectives import Collectives, identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.training.guard import keep_finite
from jaxdqn.types import (
    Agent,
    AgentState,
    Array,
    Batch,
    LearnInfo,
    PyTree,
    Row,
    TrainState,
)

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
    return collectives if config.average_every is None else identity_collectives


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
