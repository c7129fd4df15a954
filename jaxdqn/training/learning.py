"""The M gradient steps of an iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.communication.averaging import make_average
from jaxdqn.communication.collectives import Collectives, identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.training.guard import keep_finite
from jaxdqn.training.metrics import mean_metrics, scan_and_add
from jaxdqn.types import (
    RESERVED_METRICS,
    ActInfo,
    ActorState,
    Agent,
    AgentState,
    Array,
    Batch,
    LearnInfo,
    Metrics,
    PyTree,
    Row,
    TrainState,
)

GradientStep = Callable[[TrainState, PyTree], tuple[TrainState, tuple[LearnInfo, Array]]]
"""``gradient_step(state, inputs) -> (state, (info, skipped[] bool))``"""


def no_extras(actor: ActorState, info: ActInfo) -> PyTree:
    """Return empty ``extras``: rows hold only the transition."""
    return ()


class Learning(NamedTuple):
    """Algorithm-specific functions on one device: content of rows, replay, gradient steps."""

    init: Callable[[Row], PyTree]
    """``init(example_row) -> replay``, the initial ``TrainState.replay``"""
    remember: Callable[[PyTree, Row], PyTree]
    """``remember(replay, rows[K, E]) -> replay``"""
    key_shapes: PyTree
    """Shapes by name of the keys that an iteration consumes, in the form for ``split_named``."""
    prepare: Callable[[PyTree, TrainState, Row], tuple[GradientStep, PyTree]]
    """``prepare(keys, state, rows[K, E]) -> (gradient_step, inputs)``, with ``keys`` in the layout
    of ``key_shapes``. ``inputs`` has leaves [M, ...]; gradient step m receives slice m."""
    extras: Callable[[ActorState, ActInfo], PyTree] = no_extras
    """``extras(actor, info)``: the ``Row.extras`` of one vector step, leaves [E, ...]. ``actor`` is
    the acting state before the step. ``info`` is the ``ActInfo`` of ``Agent.act``, with the same
    shapes and dtypes whether the agent explores or not."""
    stacked: bool = False
    """True if rows hold the stacked observation, as the network receives it; by default they hold
    the newest frame only."""


class ReplayKeys(NamedTuple):
    """Keys of an iteration that learns from batches of a replay, or their shapes."""

    gradient_steps: PyTree
    """[M, 2]: for each gradient step a key for ``Replay.sample``, then a key for ``Agent.learn``"""


def make_update(
    config: Config, agent: Agent, collectives: Collectives
) -> Callable[[Array, TrainState, Batch, Array], tuple[AgentState, LearnInfo, Array]]:
    """Make ``update(key, state, batch, weights[B]) -> (agent_state, info, skipped)``.

    ``update`` takes one gradient step of the agent. ``skipped`` [] bool is True if the guard undid
    the step.
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

    With ``average_every`` they are identities, because the replicas then communicate only when they
    average their parameters.
    """
    return collectives if config.average_every is None else identity_collectives


def make_learn(
    config: Config, agent: Agent, learning: Learning, collectives: Collectives
) -> Callable[[PyTree, TrainState, Row], tuple[TrainState, dict[str, Any]]]:
    """Make ``learn(keys, state, rows[K, E]) -> (state, metrics)``, the M gradient steps.

    If ``average_every`` is at most M, ``learn`` also averages the parameters over the replicas. The
    returned metrics, by name, cover this device only.
    """
    steps, every = config.gradient_steps_per_iteration, config.average_every
    form = {"unroll": True, "pack": config.model_devices == 1}
    average = make_average(config, collectives, target_period=agent.target_period)

    def learn(keys: PyTree, state: TrainState, rows: Row) -> tuple[TrainState, dict[str, Any]]:
        gradient_step, inputs = learning.prepare(keys, state, rows)
        _check_inputs(inputs, steps)

        def one_step(state: TrainState, inputs: PyTree) -> tuple[TrainState, tuple[()], Metrics]:
            state, (info, skipped) = gradient_step(state, inputs)
            return state, (), _learn_metrics(info, skipped)

        def steps_and_average(
            state: TrainState, inputs: PyTree
        ) -> tuple[TrainState, tuple[()], Metrics]:
            state, _, metrics = scan_and_add(one_step, state, inputs, **form)
            agent_state, gap = average(state.agent)
            metrics = metrics._replace(averagings=jnp.int32(1), gap_sum=gap)
            return state._replace(agent=agent_state), (), metrics

        if every is None or every > steps:
            state, _, metrics = scan_and_add(one_step, state, inputs, **form)
        else:
            groups = jax.tree.map(
                lambda leaf: leaf.reshape(steps // every, every, *leaf.shape[1:]), inputs
            )
            state, _, metrics = scan_and_add(steps_and_average, state, groups, pack=form["pack"])
        return state, _present(mean_metrics(metrics, steps))

    return learn


def _check_inputs(inputs: PyTree, steps: int) -> None:
    """Check that the inputs of the gradient steps have leaves [M, ...]."""
    for leaf in jax.tree.leaves(inputs):
        if leaf.ndim == 0 or leaf.shape[0] != steps:
            raise ValueError(
                f"learning: prepare must return inputs with a leading axis of the {steps} gradient "
                f"steps of an iteration, not {leaf.shape}"
            )


def _learn_metrics(info: LearnInfo, skipped: Array) -> Metrics:
    """Return the metrics of one gradient step; the fields that it does not determine are empty."""
    empty: Any = dict.fromkeys(Metrics._fields, ())
    learned = {
        "gradient_steps": jnp.int32(1),
        "skipped": skipped.astype(jnp.int32),
        "first_skipped": jnp.int32(0),
        "loss": info.loss,
        "grad_norm": info.grad_norm,
        "q_mean": info.q_mean,
        "extra": _extra(info),
        "diagnostics": info.diagnostics,
    }
    return Metrics(**{**empty, **learned})


def _present(metrics: Metrics) -> dict[str, Any]:
    """Return the non-empty fields of metrics by name."""
    return {name: leaf for name, leaf in metrics._asdict().items() if not isinstance(leaf, tuple)}


def _extra(info: LearnInfo) -> dict[str, Array]:
    """Return the custom metrics by name, after checking their names."""
    extra = dict(info.extra)
    reserved = (*RESERVED_METRICS, *dict(info.diagnostics))
    for name in extra:
        if not name.isidentifier() or name in reserved:
            raise ValueError(
                f"metric {name!r}: must be an identifier and none of {', '.join(reserved)}"
            )
    return extra
