"""Parameter server and its learners, after Gorila (Nair et al. 2015), as pure functions.

Learners compute gradients with their copy of the parameters. The server owns the parameters, the
optimiser state and the target network, and applies the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.actor_learner.group_learner import (
    GroupLearner,
    environment_of,
    make_group_learner,
    no_metrics,
)
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.communication.packets import PacketCode, make_packet_code
from jaxdqn.config.config import Config, replace
from jaxdqn.training.algorithms import CustomParts, build_agent
from jaxdqn.training.dqn import importance_exponent, make_importance_weights, priorities_of
from jaxdqn.training.guard import keep_finite
from jaxdqn.training.hyper import hyper_from
from jaxdqn.types import (
    Agent,
    AgentState,
    Array,
    Batch,
    Counter,
    Counters,
    Hyper,
    LearnInfo,
    Metrics,
    Params,
    PyTree,
    SampleInfo,
    TrainState,
    counter_add,
    make_counter,
)


class Copy(NamedTuple):
    """Copy of the server's parameters, with which a learner computes a gradient."""

    params: Params
    target_params: Params
    hyper: Hyper
    rows: Counter
    """Number of rows of all actors that the server had counted"""


class Gradient(NamedTuple):
    """Gradient of one learner, as sent to the server."""

    packet: PyTree
    """Gradient, encoded by ``PacketCode``"""
    loss: Array
    """[] float32"""
    grad_norm: Array
    """[] float32, norm of the gradient before encoding"""
    q_mean: Array
    """[] float32"""
    least_probability: Array
    """[] float32, minimum probability of the rows of the batch; their importance weights are
    relative to it"""
    importance_exponent: Array
    """[] float32, exponent of these weights"""


class LearnerFunctions(NamedTuple):
    """Pure functions of one learner."""

    init: Callable[[], PyTree]
    """``init() -> residual`` of the compression"""
    gradient: Callable[[Array, Copy, Batch, SampleInfo, PyTree], tuple[Array, Gradient, PyTree]]
    """``gradient(key, copy, batch[B], info[B], residual) -> (priorities[B], gradient, residual)``;
    consumes ``key``."""
    batch_size: int
    """B, number of rows in the batch of a learner"""


class ServerFunctions(NamedTuple):
    """Pure functions of the server. Its state has an empty replay."""

    init: Callable[[Array, Hyper | None], TrainState]
    """``init(key, hyper=None) -> state``"""
    next_keys: Callable[[Array, int], tuple[Array, Array]]
    """As ``GroupLearner.next_keys``."""
    apply: Callable[[TrainState, tuple[Gradient, ...], Array], tuple[TrainState, Metrics]]
    """``apply(state, gradients, staleness) -> (state, metrics)``: one gradient step with the mean
    of the gradients. ``staleness`` [] float32 is the number of gradient steps since the parameters
    were copied with which the gradients were computed."""
    packet_bytes: int
    """Bytes of one gradient"""
    example: Any
    """Row of zeros, the argument of ``Replay.init``"""


class Compression(NamedTuple):
    """Compression of gradients sent to the server."""

    kind: str = "none"
    top_k_fraction: float = 0.01


PLAIN = Compression()


def make_gradient_learner(
    config: Config, *, batches: int = 1, compression: Compression = PLAIN
) -> LearnerFunctions:
    """Make the functions of one learner.

    Args:
      config: configuration of the run.
      batches: number of learners that divide the batch of a gradient step.
      compression: compression of the gradients.
    """
    config = divided_config(config, batches)
    agent = _agent_of(config)
    weights_of = make_importance_weights(config, identity_collectives)
    code = _code_of(config, agent, compression)

    def gradient(
        key: Array, copy: Copy, batch: Batch, info: SampleInfo, residual: PyTree
    ) -> tuple[Array, Gradient, PyTree]:
        assert agent.gradient is not None
        agent_state = AgentState(copy.params, copy.target_params, (), jnp.int32(0))
        counters = Counters(copy.rows, make_counter(), make_counter())
        state = TrainState(key, copy.hyper, agent_state, (), _NO_ACTOR, counters)
        weights = weights_of(state, info)
        grads, learned = agent.gradient(key, agent_state, batch, weights, hyper=copy.hyper)
        packet, residual = code.encode(grads, residual)
        least, exponent = jnp.min(info.probabilities), importance_exponent(config, state)
        sent = Gradient(packet, learned.loss, learned.grad_norm, learned.q_mean, least, exponent)
        return priorities_of(state, learned), sent, residual

    return LearnerFunctions(code.init, gradient, config.batch_size * config.accumulate)


def make_gradient_server(
    config: Config, *, staleness_discount: float = 0.0, compression: Compression = PLAIN
) -> ServerFunctions:
    """Make the functions of the server.

    Args:
      config: configuration of the run.
      staleness_discount: exponent P; the learning rate of a gradient of staleness s is multiplied
        by (1 + s)^-P. P = 1 corresponds to Zhang et al. 2016 ("Staleness-aware async-SGD").
      compression: compression of the gradients.
    """
    base: GroupLearner = make_group_learner(config)
    agent = _agent_of(config)
    code = _code_of(config, agent, compression)

    def apply(
        state: TrainState, gradients: tuple[Gradient, ...], staleness: Array
    ) -> tuple[TrainState, Metrics]:
        assert agent.apply is not None
        grads, info = _mean(code, gradients)
        hyper = state.hyper
        if staleness_discount:
            factor = (1.0 + staleness) ** -staleness_discount
            hyper = hyper._replace(learning_rate=hyper.learning_rate * factor)
        after = agent.apply(state.agent, grads, info.loss, hyper=hyper)
        skipped = jnp.bool_(False)
        if config.guard != "off":
            after, skipped = keep_finite(
                state.agent,
                after,
                info,
                identity_collectives,
                periodic=agent.target_period is not None,
            )
        steps = counter_add(state.counters.gradient_steps, jnp.int32(1))
        metrics = no_metrics()._replace(
            gradient_steps=jnp.int32(1),
            skipped=skipped.astype(jnp.int32),
            loss=info.loss,
            grad_norm=info.grad_norm,
            q_mean=info.q_mean,
        )
        counters = state.counters._replace(gradient_steps=steps)
        return state._replace(agent=after, counters=counters), metrics

    return ServerFunctions(base.init, base.next_keys, apply, code.packet_bytes, base.example)


_NO_ACTOR: Any = ()
"""Learners do not act."""


def divided_config(config: Config, batches: int) -> Config:
    """Return the configuration of a learner that receives one of ``batches`` parts of a batch."""
    return replace(
        config,
        batch_size=config.batch_size // batches,
        gradient_steps=1,
        replay_ratio=None,
    )


def _agent_of(config: Config) -> Agent:
    spec = environment_of(config).spec
    return build_agent(config, spec, identity_collectives, None, CustomParts())


def _code_of(config: Config, agent: Agent, compression: Compression) -> PacketCode:
    spec = environment_of(config).spec
    shape = spec.obs_shape if config.frame_stack == 1 else (*spec.obs_shape, config.frame_stack)
    obs = jax.ShapeDtypeStruct((1, *shape), spec.obs_dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    hyper = jax.eval_shape(lambda: hyper_from(config))
    init = jax.eval_shape(
        lambda key, obs, hyper: agent.init(key, obs, hyper=hyper), key, obs, hyper
    )
    return make_packet_code(
        compression.kind, init.params, top_k_fraction=compression.top_k_fraction
    )


def _mean(code: PacketCode, gradients: tuple[Gradient, ...]) -> tuple[Params, LearnInfo]:
    """Return the gradient of the whole batch from the gradients of its parts, and diagnostics.

    The importance weights of a part are relative to the minimum probability in that part. They are
    rescaled so that they are relative to the minimum probability in the whole batch.
    """
    decoded = [code.decode(gradient.packet) for gradient in gradients]
    count = len(gradients)
    if count == 1:
        one = gradients[0]
        return decoded[0], LearnInfo(one.loss, jnp.zeros(1, jnp.float32), one.grad_norm, one.q_mean)
    least = jnp.stack([gradient.least_probability for gradient in gradients])
    factors = (jnp.min(least) / least) ** gradients[0].importance_exponent / count
    grads = jax.tree.map(
        lambda *leaves: sum(
            (leaf * factors[i] for i, leaf in enumerate(leaves)), jnp.zeros_like(leaves[0])
        ),
        *decoded,
    )
    info = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(
        gradient._replace(packet=()) for gradient in gradients
    ))  # fmt: skip
    return grads, LearnInfo(
        loss=jnp.sum(info.loss * factors),
        abs_td=jnp.zeros(1, jnp.float32),
        grad_norm=jnp.mean(info.grad_norm),
        q_mean=jnp.mean(info.q_mean),
    )
