"""Gradient steps of the driver process, with a shard in the process of the test."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.deaths import Deaths
from jaxdqn.actor_learner.group_learner import make_group_learner
from jaxdqn.actor_learner.group_learning import GroupLearning
from jaxdqn.actor_learner.initial_priorities import example_extras
from jaxdqn.actor_learner.ray_cluster import ObjectLost
from jaxdqn.actor_learner.time_use import TimeUse
from jaxdqn.actor_learner.workers import ActorWorker, Published, ShardWorker, to_numpy
from jaxdqn.config.config import Config

CONFIG = Config(
    replay="prioritized",
    num_envs=2,
    rollout_length=1,
    gradient_steps=1,
    batch_size=4,
    hidden_sizes=(4,),
    replay_capacity=64,
    warmup_rows=16,
)


class Method:
    """Method of a worker whose calls are made at once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


class Cluster:
    """Cluster whose next result may be lost."""

    def __init__(self) -> None:
        self.loses_next = False

    def result(self, future: Any) -> Any:
        if self.loses_next:
            self.loses_next = False
            raise ObjectLost("the node left")
        return future


def test_the_seconds_of_the_learner_exclude_compilation_and_a_lost_draw_is_repeated() -> None:
    learner, times, cluster = make_group_learner(CONFIG), TimeUse(), Cluster()
    state = jax.jit(learner.init)(jax.random.key(0))
    example = to_numpy(learner.example._replace(extras=example_extras(CONFIG, "max")))
    shard = ShardWorker(CONFIG, example, 2, 1)
    actor = ActorWorker(CONFIG, np.asarray(jax.random.key_data(jax.random.key(0))), 1, 0, 4)
    published = Published(*to_numpy((state.agent.params, state.hyper)), 0)
    shard.add(0, 0, actor.block(published, 0, 0)[0])
    streams: Any = SimpleNamespace(
        masses=[1.0],
        can_draw=True,
        steps=0,
        deaths=Deaths(),
        counted=lambda state: state,
        settle_adds=lambda shard: None,
        shards=[SimpleNamespace(sample=Method(shard.sample), update=Method(shard.update))],
    )
    stand_in: Any = cluster
    learning = GroupLearning(CONFIG, stand_in, streams, learner, 2, times)
    totals = ChunkTotals(1, times)
    state, worked = learning.work(state, totals, 2)
    assert worked
    assert streams.steps == 2
    assert 0 < learning.learner_seconds < times.seconds()["compile"]
    cluster.loses_next = True
    state, _ = learning.work(state, totals, 2)
    assert streams.steps == 2
    streams.masses = [1.0]
    learning.work(state, totals, 2)
    assert streams.steps == 4
    assert learning.learner_seconds == times.seconds()["learn"]
