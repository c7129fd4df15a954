"""Actor with environments on its device; it returns their rows in blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn import envs
from jaxdqn.actor_learner.initial_priorities import InitialPriorities, with_estimates
from jaxdqn.communication.collectives import Collectives, identity_collectives
from jaxdqn.config.config import Config, replace
from jaxdqn.training.acting import make_act
from jaxdqn.training.algorithms import CustomParts, build_agent, make_learning
from jaxdqn.training.keys import split_named, start_keys
from jaxdqn.training.learner import Learner, make_learner
from jaxdqn.training.metrics import over_envs, reduce_metrics
from jaxdqn.types import (
    ActorState,
    Agent,
    AgentState,
    Array,
    Counter,
    Counters,
    EnvSpec,
    Hyper,
    Metrics,
    Params,
    Row,
    TrainState,
    counter_add,
    make_counter,
)


class Stream(NamedTuple):
    """State of one actor: its key and its environments."""

    key: Array
    """[], as ``TrainState.key``"""
    actor: ActorState
    """leaves [E, ...]"""


class ActorFunctions(NamedTuple):
    """Pure functions of one actor, which has E environments."""

    start: Callable[[Array], Stream]
    """``start(key) -> stream``: reset the environments; ``key`` is the key of the run."""
    warm_up: Callable[[Array, Stream, Params, Hyper, Counter], tuple[Stream, tuple[Row, Metrics]]]
    """``warm_up(key, stream, params, hyper, rows) -> (stream, (rows[W, K, E], metrics))``: the W
    iterations of the warm-up. ``rows`` is the number of rows of all actors before the warm-up."""
    block: Callable[[Stream, Params, Hyper, Counter], tuple[Stream, tuple[Row, Metrics]]]
    """``block(stream, params, hyper, rows) -> (stream, (rows[I, K, E], metrics))``: the next I
    iterations."""
    num_envs: int
    """E"""


def acting_config(config: Config, actors: int) -> Config:
    """Return the configuration of acting, with the environments divided over ``actors``.

    They are divided as over data-parallel replicas, so each actor has its part of the exploration
    ladder.
    """
    if actors == 1:
        return config
    # Actors do not learn, but validation requires that the batch can be divided too.
    batch_size = -(-config.batch_size // actors) * actors
    return replace(config, devices=actors, batch_size=batch_size, replay_ratio=None)


def make_actor(
    config: Config,
    *,
    actors: int,
    index: int,
    iterations: int,
    initial: InitialPriorities = "max",
) -> ActorFunctions:
    """Make the functions of one actor.

    Args:
      config: configuration of the run; ``num_envs`` counts the environments of all actors.
      actors: number of actors.
      index: index of this actor, from 0.
      iterations: I, number of iterations in a block.
      initial: initial priorities; with ``actor`` the extras of rows are ``Estimates``.
    """
    config = acting_config(config, actors)
    collectives = identity_collectives._replace(size=actors, index=lambda: jnp.int32(index))
    environment = envs.configured_environment(config, None)
    learner = learner_of_actor(config, environment.spec, collectives, initial)[1]
    estimate = with_estimates if initial == "actor" else _unchanged
    act = partial(_act, config, make_act(config, environment, learner), estimate)

    def start(key: Array) -> Stream:
        keys = start_keys(key, index)
        keys_envs = jax.random.split(keys.envs, config.envs_per_device)
        return Stream(keys.run, learner.start(*jax.vmap(environment.reset)(keys_envs)))

    def warm_up(
        key: Array, stream: Stream, params: Params, hyper: Hyper, rows: Counter
    ) -> tuple[Stream, tuple[Row, Metrics]]:
        shape = (config.warmup_iterations, *learner.key_shapes.act)
        keys = jax.random.split(start_keys(key, index).warm_up, shape)
        return act(stream, keys, params, hyper, rows)

    def block(
        stream: Stream, params: Params, hyper: Hyper, rows: Counter
    ) -> tuple[Stream, tuple[Row, Metrics]]:
        key, keys = keys_of_block(learner, stream.key, iterations)
        return act(stream._replace(key=key), keys, params, hyper, rows)

    return ActorFunctions(start, warm_up, block, config.envs_per_device)


def learner_of_actor(
    config: Config, spec: EnvSpec, collectives: Collectives, initial: InitialPriorities
) -> tuple[Agent, Learner]:
    """Return the agent and the learner with which an actor acts.

    If the actor computes initial priorities, the extras of rows are Q [E, A] and the usual extras.
    """
    custom = CustomParts()
    agent = build_agent(config, spec, collectives, None, custom)
    learning = make_learning(config, agent, collectives, custom)
    if initial == "actor":
        stored = learning.extras
        learning = learning._replace(extras=lambda actor, info: (info.q, stored(actor, info)))
    return agent, make_learner(config, spec, agent, learning, collectives)


def _unchanged(rows: Row) -> Row:
    return rows


def keys_of_block(learner: Learner, key: Array, iterations: int) -> tuple[Array, Array]:
    """Return the key after I iterations, and the keys for acting in them, [I, K, 1 + E]."""

    def split(key: Array, _: None) -> tuple[Array, Array]:
        keys = split_named(key, learner.key_shapes)
        return keys.next, keys.act

    return jax.lax.scan(split, key, None, length=iterations)


def _act(
    config: Config,
    act: Callable[[Array, TrainState], tuple[Row, ActorState, Metrics]],
    estimate: Callable[[Row], Row],
    stream: Stream,
    keys: Array,
    params: Params,
    hyper: Hyper,
    rows: Counter,
) -> tuple[Stream, tuple[Row, Metrics]]:
    """Act for I iterations with the keys [I, K, 1 + E]."""
    none = make_counter()
    agent = AgentState(params, (), (), jnp.int32(0))
    state = TrainState(stream.key, hyper, agent, (), stream.actor, Counters(rows, none, none))

    def iterate(state: TrainState, keys: Array) -> tuple[TrainState, tuple[Row, Metrics]]:
        played, actor, metrics = act(keys, state)
        count = counter_add(state.counters.rows, jnp.int32(config.rows_per_iteration))
        counters = state.counters._replace(rows=count)
        return state._replace(actor=actor, counters=counters), (played, metrics)

    state, (played, metrics) = jax.lax.scan(iterate, state, keys)
    return stream._replace(actor=state.actor), (
        estimate(played),
        over_envs(reduce_metrics(metrics)),
    )
