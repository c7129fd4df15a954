"""Loop of the driver process: its count of gradient steps, and the end of a chunk."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxdqn.actor_learner.deaths import Deaths
from jaxdqn.actor_learner.driver import Driver
from jaxdqn.actor_learner.group_learner import no_metrics
from jaxdqn.actor_learner.time_use import Limits, TimeUse
from jaxdqn.config.config import Config
from jaxdqn.errors import RunStopped
from jaxdqn.run.chunks import ChunkRunner
from jaxdqn.run.compile import finished
from jaxdqn.run.interrupt import StopRequest
from jaxdqn.run.progress import Progress
from jaxdqn.types import Counter, Counters


def driver_after(rows: int, steps: int) -> Any:
    """Return a driver without workers that has counted rows and gradient steps."""
    driver = object.__new__(Driver)
    driver._config = Config(num_envs=8, rollout_length=4, gradient_steps=2, batch_size=8)
    driver._origin = 1_024, 100
    driver.streams = SimpleNamespace(rows=rows, steps=steps)  # type: ignore[assignment]
    return driver


def test_the_gradient_steps_owed_are_those_that_the_rows_allow() -> None:
    # Two gradient steps for 32 rows, counted from the end of the warm-up.
    assert driver_after(1_024, 100).owed == 0
    assert driver_after(1_024 + 320, 100).owed == 20
    assert driver_after(1_024 + 320 + 15, 116).owed == 4
    assert driver_after(1_024 + 320 + 16, 116).owed == 5


@pytest.mark.parametrize(
    ("taken", "learned", "done"), [(0, 0, 0), (100, 16, 3), (100, 2, 1), (320, 4, 2)]
)
def test_a_stop_request_ends_a_chunk_whose_workers_do_not_answer(
    taken: int, learned: int, done: int
) -> None:
    driver = driver_after(1_024, 100)
    driver._target_rows, driver._target_steps = 1_024, 100
    driver._num_actors, driver._times, driver._server = 1, TimeUse(), None
    driver._done, driver.limits, driver.learning = 0, Limits(), SimpleNamespace(unit=16)
    streams = driver.streams
    streams.deaths, streams.counted = Deaths(), lambda state: state
    streams.shard_seconds, streams.restarts, streams.present = (), 0, 0
    streams.rows_of_process = {"lost": 0, "duplicated": 0}

    def advance(totals: Any) -> None:
        if streams.rows == 1_024 + taken:
            raise RunStopped("SIGTERM")
        streams.rows += 20
        streams.steps = min(100 + learned, streams.steps + 16)

    driver._advance = advance
    state: Any = SimpleNamespace(
        agent=SimpleNamespace(params={"w": np.ones(2)}), counters="counters"
    )
    _, (metrics, counters) = driver.chunk(state, 10)
    assert counters == "counters"
    assert int(metrics.gradient_steps) == 0
    # Ten iterations of 32 rows and 2 gradient steps were asked for. An iteration is complete with
    # its rows and its gradient steps.
    assert driver.iterations_done(10) == done
    assert driver._target_rows == 1_024 + 32 * done
    assert driver._target_steps == 100 + 2 * done


def test_a_run_that_is_stopped_while_its_workers_start_says_so() -> None:
    driver = driver_after(0, 0)
    driver._server, driver._times, driver._num_actors = None, TimeUse(), 1
    driver._example, driver.block_iterations, driver._initial = (), 1, "max"
    driver.limits, driver.learning = Limits(), SimpleNamespace(start=lambda: None)

    def warm_up(*_: Any) -> None:
        raise RunStopped("deadline")

    driver.streams = SimpleNamespace(start=lambda *_: None, warm_up=warm_up, shard_seconds=())
    state: Any = ()
    with pytest.raises(RunStopped, match=r"^max_seconds: the run ended while its workers started"):
        driver.start(jax.random.key(0), state)


def test_the_iterations_of_a_chunk_that_was_stopped_are_recorded() -> None:
    config = Config(log_every=320, num_envs=8, rollout_length=4, batch_size=8)
    metrics: Any = jax.device_get(no_metrics())
    count = Counter(np.int32(0), np.int32(0))
    counters: Any = Counters(count, count, count)
    left = iter([3, 7])

    def chunk(state: Any) -> Any:
        return state, (metrics, counters)

    programs: Any = SimpleNamespace(
        chunk=chunk,
        part_of_chunk=lambda iterations: finished(chunk),
        least_first_part=1,
        iterations_done=lambda iterations: next(left),
    )
    progress, stop = Progress.of(1), StopRequest()
    stop.record("SIGTERM")
    runner = ChunkRunner(config, programs, progress)
    state: Any = ()
    assert runner.run(state, stop) == ((), None)
    assert progress.partial is not None
    assert (progress.chunk, progress.partial["iterations"]) == (0, 3)
    # The resumed run completes the chunk.
    assert runner.run(state, StopRequest())[1] is not None
    assert (progress.chunk, progress.partial) == (1, None)
