"""Gradients of learners, and the server that applies them."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.actor_learner.gradient_server import (
    Compression,
    Copy,
    Gradient,
    LearnerFunctions,
    ServerFunctions,
    make_gradient_learner,
    make_gradient_server,
)
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.training.dqn import make_importance_weights
from jaxdqn.types import Batch, SampleInfo, TrainState

CONFIG = Config(
    replay="prioritized",
    num_envs=4,
    batch_size=8,
    hidden_sizes=(8,),
    replay_capacity=128,
    warmup_rows=32,
    total_rows=400,
    learning_rate=1e-3,
)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def state() -> TrainState:
    return jax.jit(make_gradient_server(CONFIG).init)(KEY, None)._replace(replay=())


@cache
def learner_of(**options: Any) -> LearnerFunctions:
    functions = make_gradient_learner(CONFIG, **options)
    return functions._replace(gradient=jax.jit(functions.gradient))


@cache
def server_of(**options: Any) -> ServerFunctions:
    functions = make_gradient_server(CONFIG, **options)
    return functions._replace(apply=jax.jit(functions.apply))


def batch_of(size: int, seed: int = 0) -> tuple[Batch, SampleInfo]:
    keys = jax.random.split(jax.random.key(seed), 4)
    batch = Batch(
        obs_tm1=jax.random.normal(keys[0], (size, 4)),
        a_tm1=jax.random.randint(keys[1], (size,), 0, 2),
        r_t=jnp.arange(size, dtype=jnp.float32),
        discount_t=jnp.full(size, 0.9),
        obs_t=jax.random.normal(keys[2], (size, 4)),
    )
    probabilities = jax.random.uniform(keys[3], (size,), minval=0.01, maxval=0.1)
    return batch, SampleInfo(jnp.arange(size, dtype=jnp.int32), probabilities)


def copy_of(state: TrainState) -> Copy:
    return Copy(state.agent.params, state.agent.target_params, state.hyper, state.counters.rows)


def part_of(tree: Any, part: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[4 * part : 4 * part + 4], tree)


def change(before: TrainState, after: TrainState) -> jax.Array:
    """Return the change of the parameters as a vector."""
    moved = jax.tree.map(lambda old, new: (new - old).ravel(), before.agent, after.agent)
    return jnp.concatenate(jax.tree.leaves(moved.params))


def test_two_learners_give_the_gradient_of_the_whole_batch(state: TrainState) -> None:
    batch, info = batch_of(8)
    copy, server = copy_of(state), server_of()
    _, whole, _ = learner_of().gradient(KEY, copy, batch, info, ())
    part = learner_of(batches=2)
    assert part.batch_size == 4
    parts = [part.gradient(KEY, copy, part_of(batch, i), part_of(info, i), ()) for i in (0, 1)]
    expected, one = server.apply(state, (whole,), jnp.float32(0))
    actual, two = server.apply(state, (parts[0][1], parts[1][1]), jnp.float32(0))
    first_moments = [jax.tree.leaves(result.agent.opt_state) for result in (expected, actual)]
    for wanted, found in zip(*first_moments, strict=True):
        np.testing.assert_allclose(wanted, found, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-5)
    assert float(jnp.linalg.norm(change(state, actual))) > 0


def test_priorities_and_importance_weights_are_those_of_the_plain_learner(
    state: TrainState,
) -> None:
    batch, info = batch_of(8)
    learner = learner_of()
    priorities, sent, _ = learner.gradient(KEY, copy_of(state), batch, info, ())
    assert priorities.shape == (8,)
    weights = make_importance_weights(CONFIG, identity_collectives)(state, info)
    assert float(sent.least_probability) == float(jnp.min(info.probabilities))
    expected = (sent.least_probability / info.probabilities) ** sent.importance_exponent
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def gradient_of(state: TrainState, value: float) -> Gradient:
    one = jnp.float32(1)
    grads = jax.tree.map(lambda leaf: jnp.full(leaf.shape, value), state.agent.params)
    return Gradient(grads, one, one, one, one, one)


def test_the_discount_of_staleness_scales_the_learning_rate(state: TrainState) -> None:
    server = server_of(staleness_discount=1.0)
    gradient = (gradient_of(state, 0.1),)
    fresh, _ = server.apply(state, gradient, jnp.float32(0))
    stale, _ = server.apply(state, gradient, jnp.float32(3))
    np.testing.assert_allclose(4 * change(state, stale), change(state, fresh), rtol=1e-3)


def test_a_gradient_that_is_not_finite_is_undone_and_counted(state: TrainState) -> None:
    server = server_of()
    wrong = gradient_of(state, 0.1)._replace(grad_norm=jnp.float32(jnp.nan))
    after, metrics = server.apply(state, (wrong,), jnp.float32(0))
    assert int(metrics.skipped) == 1
    assert not jnp.any(change(state, after))


def test_a_compressed_gradient_moves_the_parameters_as_the_plain_one(state: TrainState) -> None:
    batch, info = batch_of(8)
    compression = Compression("int8")
    learner = learner_of(compression=compression)
    server = server_of(compression=compression)
    plain = server_of()
    assert server.packet_bytes < 0.3 * plain.packet_bytes
    arguments = (KEY, copy_of(state), batch, info)
    _, sent, residual = learner.gradient(*arguments, learner.init())
    _, exact, _ = learner_of().gradient(*arguments, ())
    one = change(state, server.apply(state, (sent,), jnp.float32(0))[0])
    other = change(state, plain.apply(state, (exact,), jnp.float32(0))[0])
    cosine = one @ other / jnp.linalg.norm(one) / jnp.linalg.norm(other)
    assert float(cosine) > 0.9
    assert float(jnp.max(jnp.abs(residual))) > 0
