"""The learning half of a step: the M gradient steps of an iteration."""

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
    RESERVED_METRICS,
    ActInfo,
    ActorState,
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
"""``gradient_step(state, inputs) -> (state, (info, skipped[] bool))``"""


def no_extras(actor: ActorState, info: ActInfo) -> PyTree:
    """Store nothing in addition to the transition: rows have empty ``extras``."""
    return ()


class Learning(NamedTuple):
    """Content of rows, replay and gradient steps of an algorithm, on one device."""

    init: Callable[[Row], PyTree]
    """``init(example_row) -> replay``, the first ``TrainState.replay``"""
    remember: Callable[[PyTree, Row], PyTree]
    """``remember(replay, rows[K, E]) -> replay``"""
    key_shapes: PyTree
    """Shapes of the keys that an iteration consumes, by name, as ``split_named`` takes them."""
    prepare: Callable[[PyTree, TrainState, Row], tuple[GradientStep, PyTree]]
    """``prepare(keys, state, rows[K, E]) -> (gradient_step, inputs)``, with ``keys`` in the
    layout of ``key_shapes``. ``inputs`` has leaves [M, ...], a slice for each gradient step."""
    extras: Callable[[ActorState, ActInfo], PyTree] = no_extras
    """``extras(actor, info) -> leaves [E, ...]``, the ``extras`` of the rows of one vector step,
    from the state of acting before the step and the diagnostics of ``Agent.act``. These have the
    same shapes and dtypes with and without exploration."""
    stacked: bool = False
    """True if rows hold the stacked observation, as the network receives it; by default they hold
    the newest frame only."""


class ReplayKeys(NamedTuple):
    """Keys of an iteration that learns from batches of a replay, or their shapes."""

    gradient_steps: PyTree
    """[M, 2], for each gradient step the key of ``Replay.sample``, then that of ``Agent.learn``"""


def make_update(
    config: Config, agent: Agent, collectives: Collectives
) -> Callable[[Array, TrainState, Batch, Array], tuple[AgentState, LearnInfo, Array]]:
    """Make ``update(key, state, batch, weights[B]) -> (agent_state, info, skipped)``.

    It is one gradient step of the agent. ``skipped`` [] bool is true if the guard undid it.
    """
    within_step = step_collectives(config, collectives)

    def update(
        key: Array, state: TrainState, batch: Batch, weights: Array
    ) -> tuple[AgentState, LearnInfo, Array]:
        with jax.named_scope("learn"):
            agent_state, info = agent.learn(key, state.agent, batch, weights, hyper=state.hyper)
        if config.guard == "off":
            return agent_state, info, jnp.bool_(False)
        with jax.named_scope("guard"):
            agent_state, skipped = keep_finite(
                state.agent,
                agent_state,
                info,
                within_step,
                periodic=agent.target_period is not None,
            )
        return agent_state, info, skipped

    return update


def step_collectives(config: Config, collectives: Collectives) -> Collectives:
    """Return the collectives of a gradient step.

    They are the identity with ``average_every``: such replicas communicate only when their
    parameters are averaged.
    """
    return collectives if config.average_every is None else identity_collectives


def make_learn(
    config: Config, agent: Agent, learning: Learning, collectives: Collectives
) -> Callable[[PyTree, TrainState, Row], tuple[TrainState, dict[str, Any]]]:
    """Make ``learn(keys, state, rows[K, E]) -> (state, metrics)``, the M gradient steps.

    With ``average_every`` of at most M it also averages the parameters. The metrics, by name,
    are of this device only.
    """
    steps, every = config.gradient_steps_per_iteration, config.average_every
    average = make_average(config, collectives, target_period=agent.target_period)

    def learn(keys: PyTree, state: TrainState, rows: Row) -> tuple[TrainState, dict[str, Any]]:
        gradient_step, inputs = learning.prepare(keys, state, rows)
        _check_inputs(inputs, steps)

        def steps_and_average(state: TrainState, inputs: PyTree) -> tuple[TrainState, Any]:
            state, outputs = jax.lax.scan(gradient_step, state, inputs)
            agent_state, gap = average(state.agent)
            return state._replace(agent=agent_state), (outputs, gap)

        averaged: dict[str, Any] = {}
        if every is None or every > steps:
            state, (infos, skipped) = jax.lax.scan(gradient_step, state, inputs)
        else:
            groups = jax.tree.map(
                lambda leaf: leaf.reshape(steps // every, every, *leaf.shape[1:]), inputs
            )
            state, ((infos, skipped), gaps) = jax.lax.scan(steps_and_average, state, groups)
            averaged = {"averagings": jnp.int32(steps // every), "gap_sum": jnp.sum(gaps)}
        return state, {**_learn_metrics(infos, skipped), **averaged}

    return learn


def _check_inputs(inputs: PyTree, steps: int) -> None:
    """Check that the inputs of the gradient steps have leaves [M, ...]."""
    for leaf in jax.tree.leaves(inputs):
        if leaf.ndim == 0 or leaf.shape[0] != steps:
            raise ValueError(
                f"learning: prepare must return inputs with a leading axis of the {steps} gradient "
                f"steps of an iteration, not {leaf.shape}"
            )


@jax.named_scope("metrics")
def _learn_metrics(infos: LearnInfo, skipped: Array) -> dict[str, Any]:
    """Reduce the diagnostics of M gradient steps, leaves [M] or [M / every, every]."""
    return {
        "skipped": jnp.sum(skipped, dtype=jnp.int32),
        "first_skipped": jnp.argmax(skipped.ravel()).astype(jnp.int32),
        "loss": jnp.mean(infos.loss),
        "grad_norm": jnp.mean(infos.grad_norm),
        "q_mean": jnp.mean(infos.q_mean),
        "extra": {name: jnp.mean(values) for name, values in _extra(infos).items()},
        "diagnostics": jax.tree.map(
            # Leaves [M] or [M / every, every], and [bins] behind for histograms.
            lambda leaf: jnp.mean(leaf, axis=tuple(range(infos.loss.ndim))),
            infos.diagnostics,
        ),
    }


def _extra(infos: LearnInfo) -> dict[str, Array]:
    """Return the custom metrics by name, after a check of the names."""
    extra = dict(infos.extra)
    reserved = (*RESERVED_METRICS, *dict(infos.diagnostics))
    for name in extra:
        if not name.isidentifier() or name in reserved:
            raise ValueError(
                f"metric {name!r}: must be an identifier and none of {', '.join(reserved)}"
            )
    return extra
