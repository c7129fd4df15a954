"""One actor, one shard and one gradient step at a time compute what the plain trainer computes.

In the plain trainer the compiler fuses the draw of a batch with its loss, which rounds differently
in the last bit. A barrier around the draw separates them, as messages between processes do. With
two gradient steps an iteration the two loops are compiled differently: parameters then differ by
one unit in the last place after tens of steps. For a parameter server, a barrier also separates the
gradient from its application.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.actor_learner.actor import Stream, make_actor
from jaxdqn.actor_learner.gradient_server import (
    Copy,
    make_gradient_learner,
    make_gradient_server,
)
from jaxdqn.actor_learner.group_learner import make_group_learner
from jaxdqn.actor_learner.initial_priorities import example_extras
from jaxdqn.actor_learner.shard import Draws, Rings, make_shard
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.config.config import Config, replace
from jaxdqn.training.dqn import make_replay
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Hyper, Replay, Row, TrainState, counter_add

CONFIG = Config(
    replay="prioritized",
    num_envs=4,
    rollout_length=2,
    gradient_steps=1,
    batch_size=8,
    n_step=3,
    hidden_sizes=(8,),
    replay_capacity=128,
    warmup_rows=32,
    total_rows=400,
    target_period=3,
)
ITERATIONS = 20  # the ring of 32 rows for each environment wraps


def separated_replay(config: Config) -> Replay:
    """Return the replay of a configuration, not fused with the gradient steps."""
    replay = make_replay(config)
    separate = jax.lax.optimization_barrier
    return replay._replace(
        sample=lambda *arguments: separate(replay.sample(*arguments)),
        update=lambda state, *priorities: replay.update(state, *separate(priorities)),
    )


def separated_optimizer(hyper: Hyper) -> optax.GradientTransformation:
    """Return the optimiser of ``CONFIG``, not fused with the gradient."""
    inner = make_optimizer(CONFIG)(hyper)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return inner.update(jax.lax.optimization_barrier(updates), state, params)

    return optax.GradientTransformation(inner.init, update)


Learn = Callable[[TrainState, jax.Array, Draws], tuple[TrainState, jax.Array]]
"""``learn(state, key, draws) -> (state, priorities[1, B])``"""


def group_learner(config: Config) -> Learn:
    """Return the gradient step of the learner of Ape-X."""
    learn = jax.jit(make_group_learner(config).learn)

    def step(state: TrainState, key: jax.Array, draws: Draws) -> tuple[TrainState, jax.Array]:
        state, priorities, _ = learn(state, key[None], draws.batches, draws.info)
        return state, priorities

    return step


def gradient_server(config: Config) -> Learn:
    """Return the gradient step of a parameter server with one learner."""
    learner, server = make_gradient_learner(config), make_gradient_server(config)
    gradient, apply = jax.jit(learner.gradient), jax.jit(server.apply)

    def step(state: TrainState, key: jax.Array, draws: Draws) -> tuple[TrainState, jax.Array]:
        copy = Copy(state.agent.params, state.agent.target_params, state.hyper, state.counters.rows)
        batch, info = jax.tree.map(lambda leaf: leaf[0], (draws.batches, draws.info))
        priorities, sent, _ = gradient(key, copy, batch, info, learner.init())
        state, _ = apply(state, (sent,), jnp.float32(0))
        return state, priorities[None]

    return step


def synchronous(
    key: jax.Array, config: Config, iterations: int, learn: Learn
) -> tuple[TrainState, Rings, Stream]:
    """Return the learner's state and the rings after synchronous iterations."""
    actor = make_actor(config, actors=1, index=0, iterations=1)
    shard = make_shard(config, num_envs=actor.num_envs, rings=1)
    learner = make_group_learner(config)
    warm_up, act = jax.jit(actor.warm_up), jax.jit(actor.block)
    add, sample, update = map(jax.jit, (shard.add, shard.sample, shard.update))
    state = jax.jit(learner.init)(key)._replace(replay=())
    stream = jax.jit(actor.start)(key)
    rings = shard.init(learner.example._replace(extras=example_extras(config, "max")))

    def count(state: TrainState, rows: Row) -> TrainState:
        counters = state.counters
        size = jnp.int32(rows.first.size)
        return state._replace(counters=counters._replace(rows=counter_add(counters.rows, size)))

    stream, (rows, _) = warm_up(key, stream, state.agent.params, state.hyper, state.counters.rows)
    rings, state = (add(rings[0], rows),), count(state, rows)
    for _ in range(iterations):
        after, keys = learner.next_keys(state.key, 1)
        stream, (rows, _) = act(stream, state.agent.params, state.hyper, state.counters.rows)
        rings, state = (add(rings[0], rows),), count(state._replace(key=after), rows)
        for key_draw, key_learn in keys:
            draws = sample(key_draw[None], rings, state.hyper.gamma)
            state, priorities = learn(state, key_learn, draws)
            rings = update(rings, draws, priorities)
    return state, rings, stream


@pytest.mark.slow
@pytest.mark.parametrize("ratios", [False, True])
@pytest.mark.parametrize("arrangement", [group_learner, gradient_server])
def test_synchronous_machinery_is_bitwise_the_plain_trainer(
    arrangement: Callable[[Config], Learn], ratios: bool
) -> None:
    config = replace(CONFIG, importance_ratios=ratios, target_epsilon=0.1 if ratios else 0.0)
    key = jax.random.key(5)
    optimizer = separated_optimizer if arrangement is gradient_server else None
    trainer = make_trainer(config, replay=separated_replay, optimizer=optimizer)
    plain = jax.jit(trainer.init)(key)
    step = jax.jit(trainer.step)
    for _ in range(ITERATIONS):
        plain, _ = step(plain)
    state, rings, stream = synchronous(key, config, ITERATIONS, arrangement(config))
    one, other = (
        (plain.agent, plain.replay, plain.actor, plain.key, plain.counters.gradient_steps),
        (state.agent, rings[0], stream.actor, state.key, state.counters.gradient_steps),
    )
    for expected, actual in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
            expected, actual = jax.random.key_data(expected), jax.random.key_data(actual)
        np.testing.assert_array_equal(np.asarray(expected), np.asarray(actual))
