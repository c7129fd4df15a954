"""Learner that takes gradient steps on batches drawn by shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn import envs
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config, replace
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.training.algorithms import CustomParts, build_agent
from jaxdqn.training.dqn import make_dqn_learning
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.keys import split_named, start_keys
from jaxdqn.training.learner import example_row, make_learner
from jaxdqn.training.learning import ReplayKeys
from jaxdqn.training.metrics import reduce_metrics
from jaxdqn.training.vector_functions import zero_time_step
from jaxdqn.types import (
    Array,
    Batch,
    Environment,
    Hyper,
    Metrics,
    PyTree,
    Replay,
    Row,
    SampleInfo,
    TrainState,
)


class _Delivered(NamedTuple):
    """Replay of one batch, which has already been drawn."""

    batch: Batch
    info: SampleInfo
    priorities: Array
    """[B] float32, priorities after the gradient step"""


class GroupLearner(NamedTuple):
    """Pure functions of the learner. Its state has an empty replay."""

    init: Callable[[Array, Hyper | None], TrainState]
    """``init(key, hyper=None) -> state``"""
    next_keys: Callable[[Array, int], tuple[Array, Array]]
    """``next_keys(key, iterations) -> (key, keys[iterations * M, 2])``: for each gradient step the
    key for drawing its batch and the key for its loss"""
    learn: Callable[[TrainState, Array, Batch, SampleInfo], tuple[TrainState, Array, Metrics]]
    """``learn(state, keys[m], batches[m, B], info[m, B]) -> (state, priorities[m, B], metrics)``:
    m gradient steps"""
    example: Row
    """Row of zeros, the argument of ``Replay.init``"""


def make_group_learner(config: Config) -> GroupLearner:
    """Make the learner of a configuration."""
    environment = environment_of(config)
    agent = build_agent(config, environment.spec, identity_collectives, None, CustomParts())
    one_step = replace(config, gradient_steps=1, replay_ratio=None)
    learning = make_dqn_learning(one_step, agent, identity_collectives, _delivered_replay())
    parts = (environment.spec, agent, learning, identity_collectives)
    learner = make_learner(one_step, *parts)
    shapes = learner.key_shapes._replace(
        learn=ReplayKeys(gradient_steps=(config.gradient_steps_per_iteration, 2))
    )

    def init(key: Array, hyper: Hyper | None = None) -> TrainState:
        hyper = hyper_from(config) if hyper is None else hyper
        keys = start_keys(key, 0)
        if isinstance(environment, HostEnvironment):
            actor = learner.start((), zero_time_step(environment, config.num_envs))
        else:
            keys_envs = jax.random.split(keys.envs, config.num_envs)
            actor = learner.start(*jax.vmap(environment.reset)(keys_envs))
        return learner.init(keys.agent, keys.run, actor, hyper)

    def next_keys(key: Array, iterations: int) -> tuple[Array, Array]:
        def split(key: Array, _: None) -> tuple[Array, Array]:
            keys = split_named(key, shapes)
            return keys.next, keys.learn.gradient_steps

        key, keys = jax.lax.scan(split, key, None, length=iterations)
        return key, keys.reshape(-1, 2)

    def learn(
        state: TrainState, keys: Array, batches: Batch, info: SampleInfo
    ) -> tuple[TrainState, Array, Metrics]:
        # The rows of the iteration; learning from a replay does not read them.
        no_rows: PyTree = ()

        def step(state: TrainState, inputs: Any) -> tuple[TrainState, tuple[Array, Metrics]]:
            key, batch, sample = inputs
            delivered = _Delivered(batch, sample, jnp.zeros_like(sample.probabilities))
            # The shard has already used the key for drawing.
            of_step = ReplayKeys(gradient_steps=jnp.stack([key, key])[None])
            state, metrics = learner.learn(
                of_step, state._replace(replay=delivered), no_rows, no_metrics()
            )
            return state._replace(replay=()), (state.replay.priorities, metrics)

        state, (priorities, metrics) = jax.lax.scan(step, state, (keys, batches, info))
        return state, priorities, reduce_metrics(metrics)

    return GroupLearner(init, next_keys, learn, example_row(environment.spec))


def environment_of(config: Config) -> Environment | HostEnvironment:
    """Return the environment of a run, on the device or on the host."""
    return envs.configured_host_environment(config) or envs.configured_environment(config)


def _delivered_replay() -> Replay:
    def update(state: _Delivered, indices: Array, priorities: Array) -> _Delivered:
        return state._replace(priorities=priorities)

    return Replay(
        init=lambda example: (),
        add=lambda state, rows: state,
        sample=lambda key, state, gamma: (state.batch, state.info),
        update=update,
    )


def no_metrics() -> Metrics:
    """Return zero metrics, for an iteration without acting."""
    zeros: dict[str, PyTree] = {
        name: jnp.int32(0)
        for name in ("rows", "env_steps", "gradient_steps", "episodes", "skipped",
                     "first_skipped", "lost", "averagings")
    }  # fmt: skip
    for name in ("return_sum", "length_sum", "gap_sum", "loss", "grad_norm", "q_mean", "epsilon"):
        zeros[name] = jnp.float32(0)
    return Metrics(**zeros, extra={}, illegal=())
