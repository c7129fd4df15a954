"""Workers in the process of the test."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxdqn.actor_learner.actor import make_actor
from jaxdqn.actor_learner.gradient_server import PLAIN
from jaxdqn.actor_learner.group_learner import make_group_learner
from jaxdqn.actor_learner.initial_priorities import example_extras
from jaxdqn.actor_learner.workers import (
    ActorWorker,
    LearnerWorker,
    Published,
    ShardWorker,
    to_numpy,
    with_first,
)
from jaxdqn.config.config import Config
from jaxdqn.config.presets import preset
from jaxdqn.types import Row, make_counter

CONFIG = Config(
    replay="prioritized",
    num_envs=2,
    rollout_length=1,
    batch_size=4,
    hidden_sizes=(4,),
    replay_capacity=64,
    warmup_rows=16,
)


@pytest.fixture(scope="module")
def parts() -> tuple[Row, Published, Any]:
    """Row of zeros, published parameters and the state of the learner."""
    learner = make_group_learner(CONFIG)
    state = jax.jit(learner.init)(jax.random.key(0))
    example = to_numpy(learner.example._replace(extras=example_extras(CONFIG, "max")))
    return example, Published(*to_numpy((state.agent.params, state.hyper)), 0), state


def make_actor_worker() -> ActorWorker:
    key_data = np.asarray(jax.random.key_data(jax.random.key(0)))
    return ActorWorker(CONFIG, key_data, 1, 0, 4)


def test_a_block_that_arrives_twice_is_counted_and_not_stored(parts: Any) -> None:
    example, published, _ = parts
    shard, actor = ShardWorker(CONFIG, example, 2, 1), make_actor_worker()
    blocks = [actor.block(published, 0, 0)[0] for _ in range(3)]
    for number in (0, 1):
        report = shard.add(0, number, blocks[number])
        assert (report.stored, report.duplicated) == (8, 0)
    before = jax.device_get(shard._rings[0].position)
    report = shard.add(0, 1, blocks[1])
    assert (report.stored, report.duplicated) == (0, 8)
    assert jax.device_get(shard._rings[0].position) == before
    assert report.mass > 0


def test_a_block_after_a_lost_block_starts_new_episodes(parts: Any) -> None:
    example, published, _ = parts
    actor = make_actor_worker()
    blocks = [actor.block(published, 0, 0)[0] for _ in range(3)]
    assert not np.any(blocks[2].first[0, 0])  # CartPole plays longer than eight steps
    shard, expected = (ShardWorker(CONFIG, example, 2, 1) for _ in range(2))
    shard.add(0, 0, blocks[0])
    assert shard.add(0, 2, blocks[2]).stored == 8  # the block with number 1 is lost
    expected.add(0, 0, blocks[0])
    expected.add(0, 1, with_first(blocks[2]))
    for one, other in zip(
        jax.tree.leaves(shard._rings), jax.tree.leaves(expected._rings), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    # The first block of a shard that was restarted is not a gap.
    restarted = ShardWorker(CONFIG, example, 2, 1)
    restarted.add(0, 5, blocks[2])
    stored = jax.tree.leaves(restarted._rings)
    plain = ShardWorker(CONFIG, example, 2, 1)
    plain.add(0, 0, blocks[2])
    for one, other in zip(stored, jax.tree.leaves(plain._rings), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("index", [0, 2, 7])
def test_actors_of_ape_x_have_the_epsilons_of_the_paper(index: int) -> None:
    # Horgan et al. 2018, section 4.1: epsilon ** (1 + alpha i / (N - 1)), for N = 8 actors with an
    # environment each.
    config = preset("ape-x", num_envs=8, hidden_sizes=(4,))
    actor = make_actor(config, actors=8, index=index, iterations=1)
    learner = make_group_learner(config)
    key = jax.random.key(0)
    state = jax.jit(learner.init)(key)
    after_warmup = make_counter(config.warmup_rows)
    stream = jax.jit(actor.start)(key)
    _, (_, metrics) = jax.jit(actor.block)(stream, state.agent.params, state.hyper, after_warmup)
    assert float(metrics.epsilon) == pytest.approx(0.4 ** (1 + 7 * index / 7), rel=1e-5)


def test_the_durations_of_workers_exclude_compilation(parts: Any) -> None:
    example, published, state = parts
    shard, actor = ShardWorker(CONFIG, example, 2, 1), make_actor_worker()
    learner = LearnerWorker(CONFIG, 1, PLAIN)
    key_data = np.asarray(jax.random.key_data(jax.random.key(1)))
    target = to_numpy(state.agent.target_params)
    rows, info = actor.block(published, 0, 0)
    reports = [shard.add(0, 0, rows)]
    drawn, _, _ = shard.draw(key_data, np.asarray(published.hyper.gamma), 1.0)
    _, answer = learner.gradient(published, target, 8, drawn, key_data)
    assert answer is not None
    reports.append(shard.add(0, 1, actor.block(published, 8, 0)[0]))
    for worker, seconds in (
        (actor, info.seconds),
        (shard, sum(report.seconds for report in reports)),
        (learner, answer.seconds),
    ):
        assert 0 < seconds < worker._times.seconds()["compile"]
