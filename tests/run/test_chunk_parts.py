"""Sizes of the parts of a chunk, and the time at which a deadline inside a chunk takes effect."""

import time
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest

from jaxdqn.config.config import replace
from jaxdqn.run import chunks, interrupt
from jaxdqn.run.chunk_parts import divide_first_part, first_part, part_for_duration
from jaxdqn.run.chunks import ChunkRunner
from jaxdqn.run.interrupt import StopRequest
from jaxdqn.run.progress import Progress
from jaxdqn.types import Counter, Counters, Metrics
from tests.clock import Clock
from tests.toys import tiny


def test_the_size_of_a_part_is_half_a_second_by_the_measured_speed():
    config = tiny(total_rows=32 + 1_000, log_every=1_000)
    assert config.iterations_per_chunk == 250
    assert part_for_duration(config, 0.9) is None
    assert part_for_duration(config, 2.0) == 62
    assert part_for_duration(config, 1_000.0) == 1
    averaged = tiny(total_rows=32 + 1_000, log_every=1_000, devices=2, average_every=10)
    assert part_for_duration(averaged, 2.0) == 60
    assert part_for_duration(averaged, 1_000.0) == 10


@pytest.mark.parametrize(
    ("iterations", "unit", "size"),
    [
        (320, 1, 20),
        (250, 1, 10),  # 25 parts: no number from 16 to 24 divides 250
        (101, 1, 6),  # 16 parts of 6, and one of 5
        (23, 1, 1),
        (5, 1, 1),
        (1, 1, None),
        (320, 10, 20),
        (10, 10, None),
    ],
)
def test_the_first_parts_divide_the_chunk_into_sixteen_to_32_equal_ones_if_possible(
    iterations, unit, size
):
    replicas = {} if unit == 1 else {"devices": 2, "average_every": unit}
    config = tiny(total_rows=10**6, log_every=4 * iterations, max_seconds=9.0, **replicas)
    config = replace(config, total_rows=config.warmup_rows + 40 * iterations)
    assert (config.iterations_per_chunk, config.iterations_per_average) == (iterations, unit)
    assert first_part(config) == size
    assert first_part(replace(config, max_seconds=None)) is None


def test_the_first_parts_have_a_minimum_length():
    config = tiny(total_rows=32 + 4 * 320, log_every=4 * 320, max_seconds=9.0)
    sizes = {least: first_part(config, least) for least in (1, 20, 21, 60, 160, 161)}
    assert sizes == {1: 20, 20: 20, 21: 32, 60: 64, 160: 160, 161: None}


def test_smaller_parts_divide_the_first_parts():
    config = tiny(total_rows=32 + 4 * 320, log_every=4 * 320, max_seconds=9.0)
    assert config.iterations_per_chunk == 320
    assert first_part(config) == 20
    sizes = {part: divide_first_part(config, 20, part) for part in (1, 3, 7, 12, 20, 80)}
    assert sizes == {1: 1, 3: 2, 7: 5, 12: 10, 20: 20, 80: 20}
    averaged = replace(config, devices=2, average_every=10)
    assert [divide_first_part(averaged, 20, part) for part in (3, 10, 30)] == [10, 10, 20]


class Sleeper:
    """Programs that sleep instead of training, for ``seconds_per_iteration`` each iteration."""

    def __init__(self, config, seconds_per_iteration, sleep=time.sleep):
        self.config, self.seconds, self.sleep = config, seconds_per_iteration, sleep
        self.sizes = []

    def chunk_of(self, iterations):
        def program(state):
            self.sizes.append(iterations)
            self.sleep(iterations * self.seconds)
            rows = Counter(0, state + iterations)
            metrics = Metrics(*[np.float32(1)] * len(Metrics._fields))._replace(
                extra={}, illegal=(), diagnostics=()
            )
            return state + iterations, (metrics, Counters(rows, rows, rows))

        return program

    def programs(self):
        def part_of_chunk(iterations):
            future = Future()
            future.set_result(self.chunk_of(iterations))
            return future

        chunk = self.chunk_of(self.config.iterations_per_chunk)
        return SimpleNamespace(
            chunk=chunk,
            part_of_chunk=part_of_chunk,
            least_first_part=1,
            iterations_done=lambda iterations: iterations,
        )


def test_a_deadline_inside_a_long_chunk_is_kept():
    config = tiny(total_rows=32 + 10 * 400, log_every=400)
    assert config.iterations_per_chunk == 100
    sleeper, progress, stop = Sleeper(config, 0.012), Progress.of(1), StopRequest()
    runner = ChunkRunner(config, sleeper.programs(), progress)
    deadline = time.perf_counter() + 2.0
    stop.set_deadline(deadline)
    state, report = runner.run(0, stop)
    assert report is not None
    state, report = runner.run(state, stop)
    assert report is None
    assert 0 <= time.perf_counter() - deadline < 1.0
    part = progress.part_iterations
    assert part in (33, 25)
    assert sleeper.sizes == [100] + [part] * (len(sleeper.sizes) - 1)
    assert progress.partial["iterations"] == state - 100 == part * (len(sleeper.sizes) - 1)
    assert progress.chunk == 1


@pytest.fixture
def clock(monkeypatch):
    """Return the clock that the runner and deadlines read."""
    clock = Clock()
    for module in (chunks, interrupt):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    return clock


def limited_run(clock, seconds_per_iteration, limit=100.0):
    """Return a sleeper, a request with a deadline, and a runner of chunks of 320 iterations."""
    config = tiny(total_rows=32 + 10 * 4 * 320, log_every=4 * 320, max_seconds=limit)
    assert (config.iterations_per_chunk, first_part(config)) == (320, 20)
    sleeper = Sleeper(
        config, seconds_per_iteration, sleep=lambda seconds: clock.work("sleep", seconds)()
    )
    stop = StopRequest()
    stop.set_deadline(clock() + limit)
    return sleeper, stop, ChunkRunner(config, sleeper.programs(), Progress.of(1))


@pytest.mark.parametrize("seconds", [2.0, 7.0])
def test_a_deadline_inside_the_first_chunk_is_kept(clock, seconds):
    sleeper, stop, runner = limited_run(clock, seconds / 320, limit=0.9)
    began = clock()
    state, report = runner.run(0, stop)
    assert report is None
    assert 0.9 <= clock() - began < 0.9 + 0.5
    assert set(sleeper.sizes) == {20}
    assert sum(sleeper.sizes) == state < 320


def test_parts_of_the_first_chunk_that_take_long_are_divided(clock):
    sleeper, stop, runner = limited_run(clock, 0.1, limit=7.0)
    began = clock()
    state, report = runner.run(0, stop)
    assert report is None
    assert 7.0 <= clock() - began < 7.0 + 0.5
    # The first two determine the speed.
    assert sleeper.sizes == [20, 20] + [5] * 6
    assert state == 70


def test_parts_of_the_first_chunk_are_used_until_smaller_ones_are_compiled(clock, monkeypatch):
    ready = iter([False, False, True])
    monkeypatch.setattr(chunks, "_are_ready", lambda programs: next(ready, True))
    sleeper, stop, runner = limited_run(clock, 0.1)
    runner.run(0, stop)
    assert sleeper.sizes == [20] * 4 + [5] * 48


def test_long_chunks_with_a_deadline_need_one_program(clock):
    sleeper, stop, runner = limited_run(clock, 2.0 / 320)
    state = 0
    for _ in range(3):
        state, report = runner.run(state, stop)
        assert report is not None
    assert sleeper.sizes == [20] * 48


def test_short_chunks_with_a_deadline_are_divided_once(clock):
    sleeper, stop, runner = limited_run(clock, 0.9 / 320)
    state = 0
    for _ in range(3):
        state, report = runner.run(state, stop)
        assert report is not None
    assert sleeper.sizes == [20] * 16 + [320] * 2


def test_short_chunks_are_never_divided():
    config = tiny(total_rows=32 + 5 * 400, log_every=400)
    sleeper = Sleeper(config, 0.0)
    runner, state = ChunkRunner(config, sleeper.programs(), Progress.of(1)), 0
    for _ in range(5):
        state, _ = runner.run(state, StopRequest())
    assert sleeper.sizes == [100] * 5
