"""Calls to actors and shards in the driver process, with a cluster that answers at once."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxdqn.actor_learner import deaths
from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.group_learner import no_metrics
from jaxdqn.actor_learner.ray_cluster import ObjectLost, Resources, WorkerDied
from jaxdqn.actor_learner.streams import ActorCount, Streams
from jaxdqn.actor_learner.time_use import TimeUse
from jaxdqn.actor_learner.workers import BlockInfo, ShardReport, ShardWorker
from jaxdqn.config.config import Config
from jaxdqn.types import Counters, make_counter

CONFIG = Config(
    replay="prioritized",
    num_envs=4,
    rollout_length=2,
    batch_size=8,
    replay_capacity=128,
    warmup_rows=16,
)
ROWS = 8


class Method:
    """Method of a worker: calls are futures, which hold what they return or raise."""

    def __init__(self, worker: Worker, name: str) -> None:
        self._worker, self._name = worker, name

    def options(self, **_: Any) -> Method:
        return self

    def remote(self, *arguments: Any) -> Any:
        self._worker.calls.append((self._name, arguments))
        worker = self._worker
        if worker.is_shard:
            answer: Any = ShardReport(1.0, ROWS, 0, 0.25)
        else:
            metrics = jax.device_get(no_metrics())
            metrics = metrics._replace(rows=np.int32(ROWS), env_steps=np.int32(ROWS))
            published = arguments[0]
            answer = BlockInfo(metrics, published.gradient_steps, 0.1)
        future = Future(worker.failure or answer, worker.slow)
        return future if worker.is_shard else ("rows", future)


class Future:
    def __init__(self, value: Any, slow: bool = False) -> None:
        self.value, self.slow = value, slow


class Worker:
    def __init__(self, kind: type) -> None:
        self.is_shard, self.slow = kind is ShardWorker, False
        self.failure: Exception | None = None
        """Exception that every call raises."""
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


class Cluster:
    """Stand-in for ``RayCluster``."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.waits = 0
        """Number of times that only a slow worker was waited for."""

    def start(self, kind: type, *_: Any, resources: Resources | None = None) -> Worker:
        del resources
        self.workers.append(Worker(kind))
        return self.workers[-1]

    def release(self) -> None:
        pass

    def put(self, value: Any) -> Any:
        return value

    def wait(self, futures: list[Any], _: float | None) -> list[Any]:
        """Return all futures, but those of a slow worker only once there are no others."""
        ready = [future for future in futures if not future.slow]
        if not ready:
            self.waits += 1
        return ready if ready or self.waits < 3 else list(futures)

    def result(self, future: Future) -> Any:
        if isinstance(future.value, Exception):
            raise future.value
        return future.value


DIED = WorkerDied("the process died")
Started = tuple[Streams, Cluster, Any, ChunkTotals]


TWO = ActorCount(2, 2)


def start(
    actors: ActorCount = TWO, absent: int = 0, every: int = 1, slow: tuple[int, ...] = ()
) -> Started:
    """Return streams after the warm-up, with one shard and some optional actors absent.

    The workers in ``slow`` (0 is the shard) answer after the others.
    """
    cluster, times = Cluster(), TimeUse()
    streams = Streams(CONFIG, cluster, actors, 1, times, Resources(), every)  # type: ignore
    counters = Counters(make_counter(), make_counter(), make_counter())
    agent = SimpleNamespace(params={"w": np.ones(2)})
    state = SimpleNamespace(agent=agent, hyper=(), counters=counters)
    totals = ChunkTotals(actors.most, times, 0, [0.0])
    example: Any = ()
    streams.start(np.zeros(2, np.uint32), example, 2, CONFIG, "max")
    for worker in cluster.workers[len(cluster.workers) - absent :]:
        worker.failure = DIED
    for index in slow:
        cluster.workers[index].slow = True
    streams.warm_up(state, totals)  # type: ignore
    return streams, cluster, state, totals


@pytest.fixture
def started() -> Started:
    """Streams of two actors and a shard after the warm-up."""
    return start()


def take_all(streams: Streams, state: Any, totals: ChunkTotals) -> None:
    for future in streams.futures:
        streams.take(future, state, totals)


def test_blocks_are_numbered_and_each_row_is_counted_once(started: Any) -> None:
    streams, cluster, state, totals = started
    for _ in range(3):
        take_all(streams, state, totals)
    shard = cluster.workers[0]
    for ring in (0, 1):
        added = [arguments[:2] for name, arguments in shard.calls if name == "add"]
        assert [number for of_ring, number in added if of_ring == ring] == list(range(4))
    counts = streams.rows_of_process
    assert counts["taken"] == streams.rows == 8 * ROWS
    assert counts["stored"] + counts["on_their_way"] == counts["taken"]
    assert (counts["on_their_way"], counts["lost"]) == (2 * ROWS, 0)


def test_one_death_of_an_actor_counts_once_and_its_next_call_waits(started: Any) -> None:
    streams, cluster, state, totals = started
    actor = cluster.workers[1]
    take_all(streams, state, totals)
    actor.failure = DIED
    take_all(streams, state, totals)  # the calls that were in flight before the death
    take_all(streams, state, totals)
    assert (streams.restarts, streams.present, len(streams.futures)) == (1, 1, 1)
    assert streams.use_of_waiting == "recovery"
    assert streams.seconds_to_retry is not None
    time.sleep(streams.seconds_to_retry)
    streams.retry(state)
    take_all(streams, state, totals)  # it fails again: Ray has not restarted the process yet
    assert streams.restarts == 1
    actor.failure = None
    time.sleep(streams.seconds_to_retry or 0)
    streams.retry(state)
    take_all(streams, state, totals)
    assert (streams.present, streams.use_of_waiting, streams.seconds_to_retry) == (2, "rows", None)
    # The incarnation is that after the second failure, and starts another stream.
    assert actor.calls[-1][1][2] == 2


def test_rows_on_their_way_to_a_shard_that_dies_are_lost_and_counted(started: Any) -> None:
    streams, cluster, state, totals = started
    cluster.workers[0].failure = DIED
    take_all(streams, state, totals)
    streams.settle_adds(0)
    counts = streams.rows_of_process
    assert counts == {"taken": 4 * ROWS, "stored": 2 * ROWS, "lost": 2 * ROWS, "on_their_way": 0,
                      "duplicated": 0}  # fmt: skip
    assert not streams.can_draw
    assert streams.restarts == 1


def test_rows_that_are_lost_with_the_node_of_an_actor_do_not_end_the_run(started: Any) -> None:
    streams, cluster, state, totals = started
    shard, actor = cluster.workers[:2]
    shard.failure = ObjectLost("the node left")
    take_all(streams, state, totals)
    streams.settle_adds(0)
    counts = streams.rows_of_process
    assert (counts["stored"], counts["lost"]) == (2 * ROWS, 2 * ROWS)
    assert streams.can_draw  # the shard has its other rows
    assert streams.restarts == 0
    shard.failure = None
    # The parameters of the next block are lost: the actor starts a new stream.
    actor.failure = ObjectLost("the node left")
    take_all(streams, state, totals)
    take_all(streams, state, totals)
    assert (streams.present, len(streams.futures)) == (1, 1)
    assert streams.seconds_to_retry is not None


@pytest.mark.parametrize("absent", [0, 2])
def test_an_elastic_warm_up_collects_all_its_rows(absent: int) -> None:
    actors = ActorCount(2, 4)
    streams, *_ = start(actors, absent)
    assert streams.rows >= CONFIG.warmup_rows
    assert streams.present == 4 - absent


def test_an_actor_that_starts_early_collects_no_more_than_its_part_of_the_warm_up() -> None:
    streams, cluster, *_ = start(slow=(2,))
    assert cluster.waits == 3
    assert streams.rows == CONFIG.warmup_rows
    for actor in cluster.workers[1:]:
        assert [name for name, _ in actor.calls] == ["warm_up", "block"]


def test_a_required_worker_that_does_not_return_is_reported_once(
    started: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, cluster, state, totals = started
    cluster.workers[2].failure = DIED
    take_all(streams, state, totals)
    take_all(streams, state, totals)
    streams.deaths.report()
    assert not capsys.readouterr().err
    monkeypatch.setattr(deaths, "_REPORT_SECONDS", 0.0)
    for _ in range(3):
        streams.deaths.report()
    line = capsys.readouterr().err
    assert line.startswith("warning: the run waits for actor 1: its process died 0 s ago")
    assert line.count("\n") == 1


def test_an_actor_gets_new_parameters_after_so_many_blocks() -> None:
    streams, cluster, state, totals = start(every=3)
    for steps in range(1, 9):
        streams.steps = steps
        take_all(streams, state, totals)
    for actor in cluster.workers[1:]:
        versions = [arguments[0].gradient_steps for _, arguments in actor.calls]
        # The call of the warm-up, and those after each of nine blocks.
        assert versions == [0, 0, 0, 2, 2, 2, 5, 5, 5, 8]
    # Blocks of the versions 0, 0, 0, 2, 2, 2, 5, 5, 5, taken after 0 to 8 steps.
    age = totals.metrics(state, streams).extra["parameter_age"]
    assert age == pytest.approx(np.mean([0, 1, 2, 1, 2, 3, 1, 2, 3]))
