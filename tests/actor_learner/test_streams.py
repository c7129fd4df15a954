"""Calls to actors and shards in the driver process, with a cluster that answers at once."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.ray_cluster import Resources, WorkerDied
from jaxdqn.actor_learner.streams import ActorCount, Streams
from jaxdqn.actor_learner.time_use import TimeUse
from jaxdqn.actor_learner.workers import BlockInfo, ShardWorker
from jaxdqn.config.config import Config
from jaxdqn.types import Counters, make_counter

CONFIG = Config(replay="prioritized", num_envs=4, batch_size=8, replay_capacity=128, warmup_rows=32)
ROWS = 8


class Method:
    """Method of a worker: calls are futures, which hold what they return or raise."""

    def __init__(self, worker: Worker, name: str) -> None:
        self._worker, self._name = worker, name

    def options(self, **_: Any) -> Method:
        return self

    def remote(self, *arguments: Any) -> Any:
        self._worker.calls.append((self._name, arguments))
        if self._worker.is_shard:
            return object() if self._worker.dead else SimpleNamespace(value=1.0)
        metrics: Any = SimpleNamespace(rows=ROWS, env_steps=ROWS)
        info = object() if self._worker.dead else Future(BlockInfo(metrics, 0, 0.1))
        return "rows", info


class Future:
    def __init__(self, value: Any) -> None:
        self.value = value


class Worker:
    def __init__(self, kind: type) -> None:
        self.is_shard, self.dead = kind is ShardWorker, False
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


class Cluster:
    """Stand-in for ``RayCluster``."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []

    def start(self, kind: type, *_: Any, resources: Resources | None = None) -> Worker:
        del resources
        self.workers.append(Worker(kind))
        return self.workers[-1]

    def release(self) -> None:
        pass

    def put(self, value: Any) -> Any:
        return value

    def wait(self, futures: list[Any], _: float | None) -> list[Any]:
        return list(futures)

    def result(self, future: Any) -> Any:
        if not hasattr(future, "value"):
            raise WorkerDied("the process died")
        return future.value


@pytest.fixture
def started() -> tuple[Streams, Cluster, Any, ChunkTotals]:
    """Streams of two actors and a shard after the warm-up."""
    cluster, times = Cluster(), TimeUse()
    streams = Streams(CONFIG, cluster, ActorCount(2, 2), 1, times, Resources())  # type: ignore
    counters = Counters(make_counter(), make_counter(), make_counter())
    agent = SimpleNamespace(params={"w": np.ones(2)})
    state = SimpleNamespace(agent=agent, hyper=(), counters=counters)
    totals = ChunkTotals(2, times)
    example: Any = ()
    streams.start(np.zeros(2, np.uint32), example, 2, CONFIG, "max")
    streams.warm_up(state, totals)  # type: ignore
    return streams, cluster, state, totals


def take_all(streams: Streams, state: Any, totals: ChunkTotals) -> None:
    for future in streams.futures:
        streams.take(future, state, totals)


def test_blocks_are_numbered_and_each_row_is_counted_once(started: Any) -> None:
    streams, cluster, state, totals = started
    for _ in range(3):
        take_all(streams, state, totals)
    shard = cluster.workers[0]
    numbers = [arguments[1] for name, arguments in shard.calls if name == "add"]
    assert numbers == list(range(8))
    counts = streams.rows_of_process
    assert counts["taken"] == streams.rows == 8 * ROWS
    assert counts["stored"] + counts["on_their_way"] == counts["taken"]
    assert (counts["on_their_way"], counts["lost"]) == (2 * ROWS, 0)


def test_one_death_of_an_actor_counts_once_and_its_next_call_waits(started: Any) -> None:
    streams, cluster, state, totals = started
    actor = cluster.workers[1]
    take_all(streams, state, totals)
    actor.dead = True
    take_all(streams, state, totals)  # the calls that were in flight before the death
    take_all(streams, state, totals)
    assert (streams.restarts, streams.present, len(streams.futures)) == (1, 1, 1)
    assert streams.use_of_waiting == "recovery"
    assert streams.seconds_to_retry is not None
    time.sleep(streams.seconds_to_retry)
    streams.retry(state)
    take_all(streams, state, totals)  # it fails again: Ray has not restarted the process yet
    assert streams.restarts == 1
    actor.dead = False
    time.sleep(streams.seconds_to_retry or 0)
    streams.retry(state)
    take_all(streams, state, totals)
    assert (streams.present, streams.use_of_waiting, streams.seconds_to_retry) == (2, "rows", None)
    # The incarnation is that after the second failure, and starts another stream.
    assert actor.calls[-1][1][2] == 2


def test_rows_on_their_way_to_a_shard_that_dies_are_lost_and_counted(started: Any) -> None:
    streams, cluster, state, totals = started
    cluster.workers[0].dead = True
    take_all(streams, state, totals)
    streams.settle_adds(0)
    counts = streams.rows_of_process
    assert counts == {"taken": 4 * ROWS, "stored": 2 * ROWS, "lost": 2 * ROWS, "on_their_way": 0}
    assert not streams.can_draw
    assert streams.restarts == 1


def test_a_shard_rejects_a_block_that_it_has_stored() -> None:
    shard = object.__new__(ShardWorker)
    shard._newest = {0: 4}
    with pytest.raises(ValueError, match="number=4: must be above 4, that of the last block"):
        shard.add(0, 4, None)  # type: ignore


def test_uses_of_time_do_not_overlap() -> None:
    times = TimeUse()
    with times.spent("messages"):
        time.sleep(0.01)
        with times.spent("learn"):
            time.sleep(0.05)
    seconds = times.seconds()
    assert seconds["learn"] >= 0.05
    assert seconds["messages"] >= 0.01
    # Counted twice, the seconds of learning would not fit.
    assert sum(seconds.values()) <= times.wall
