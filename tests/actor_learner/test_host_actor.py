"""An actor with environments on the host collects the rows of the trainer of such environments."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxdqn import envs
from jaxdqn.actor_learner.host_actor import HostActorWorker
from jaxdqn.actor_learner.workers import Published
from jaxdqn.config.config import Config, replace
from jaxdqn.replay.ring import in_order
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.vector_programs import jit_vector_programs
from jaxdqn.training.vector_runner import VectorRunner
from jaxdqn.training.vector_trainer import make_vector_trainer
from jaxdqn.types import counter_int

CONFIG = Config(
    env="gymnasium:CartPole-v1",
    replay="prioritized",
    num_envs=4,
    rollout_length=2,
    batch_size=8,
    hidden_sizes=(8,),
    replay_capacity=1024,
    warmup_rows=128,
    total_rows=400,
    frame_stack=2,
)
KEY = jax.random.key(7)


@pytest.mark.slow
def test_rows_of_the_warm_up_are_those_of_the_trainer() -> None:
    pytest.importorskip("gymnasium")
    host = envs.configured_host_environment(CONFIG)
    assert host is not None
    trainer = make_vector_trainer(CONFIG, host)
    runner = VectorRunner(trainer, jit_vector_programs(trainer))
    state = runner.init(KEY, hyper_from(CONFIG))
    expected = in_order(state.replay.ring)
    runner.close()
    published = Published(state.agent.params, state.hyper, 0)
    worker = HostActorWorker(CONFIG, np.asarray(jax.random.key_data(KEY)), 1, 0, 3)
    rows, info = worker.warm_up(published, 0, 0)
    assert rows.obs.shape[:3] == (16, 2, 4)
    assert int(info.metrics.rows) == 128
    assert int(info.metrics.env_steps) == counter_int(state.counters.env_steps)
    for name in ("obs", "first", "action", "reward", "terminated"):
        actual = getattr(rows, name)
        actual = actual.reshape(32, *actual.shape[2:])
        np.testing.assert_array_equal(getattr(expected, name), actual, err_msg=name)


def test_a_new_incarnation_starts_other_episodes_and_blocks_follow_each_other() -> None:
    pytest.importorskip("gymnasium")
    config = replace(CONFIG, frame_stack=1)
    host = envs.configured_host_environment(config)
    assert host is not None
    trainer = make_vector_trainer(config, host)
    state = jax.eval_shape(trainer.init, KEY)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.agent.params)
    published = Published(params, hyper_from(config), 5)
    worker = HostActorWorker(config, np.asarray(jax.random.key_data(KEY)), 1, 0, 3)
    one, info = worker.block(published, 0, 0)
    two, _ = worker.block(published, 24, 0)
    assert info.gradient_steps == 5
    # One number for the block, not one for each environment. Row t+1 says whether t was a reset.
    assert {np.shape(leaf) for leaf in jax.tree.leaves(info.metrics)} == {()}
    after = np.concatenate([one.first.reshape(6, 4)[1:], two.first[0, :1]])
    assert int(info.metrics.env_steps) == (~after).sum()
    assert one.obs.shape == (3, 2, 4, 4)
    assert one.first[0, 0].all()
    # A pole moves little in one step of an episode.
    moved = np.abs(two.obs[0, 0] - one.obs[-1, -1])[~two.first[0, 0]]
    assert moved.size
    assert moved.max() < 1.0
    again, _ = worker.block(published, 48, 1)
    assert again.first[0, 0].all()
    assert (again.obs[0, 0] != one.obs[0, 0]).any()
