"""Chunks in parts: the same run however its chunks are divided, and stops that take effect soon."""

import signal
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdqn.config.config import replace
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_hypers, learner_keys
from jaxdqn.run import chunks
from jaxdqn.run.chunk_parts import first_part
from jaxdqn.run.chunks import ChunkRunner, add_parts, metrics_of
from jaxdqn.run.compile import compile_programs
from jaxdqn.run.loop import HostLoop
from jaxdqn.run.program_cache import StaticRun, compiled_programs
from jaxdqn.run.runner import run
from jaxdqn.storage.checkpoint import CHECKPOINTS, steps_of
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.types import Metrics
from tests.parallel.test_mapping_laws import assert_identical
from tests.toys import noisy, tiny

CONFIG = tiny(eval_episodes=6, eval_every=100)
ENVIRONMENT = noisy()
"""One for all of these tests, so that their runs share programs."""


def a_part(iterations, **metrics):
    values = {name: 0.0 for name in Metrics._fields} | {"rows": 4 * iterations, "extra": {}}
    values |= {"diagnostics": {}}
    return {"iterations": iterations, "seconds": 0.5, "metrics": {**values, **metrics}}


def test_parts_add_up_and_average_by_their_iterations():
    first = a_part(3, gradient_steps=6, skipped=0, lost=1, loss=2.0, return_sum=1.5, episodes=2)
    second = a_part(1, gradient_steps=2, skipped=1, lost=0, loss=4.0, return_sum=2.0, episodes=1)
    second["metrics"]["first_skipped"] = 1
    both = add_parts(first, second)
    assert (both["iterations"], both["seconds"]) == (4, 1.0)
    metrics = both["metrics"]
    assert metrics["rows"] == 16
    assert metrics["loss"] == 2.5
    assert (metrics["return_sum"], metrics["episodes"]) == (3.5, 3)
    # The parameters at the end are those of the second part.
    assert metrics["lost"] == 0
    # After the six steps of the first part and one step of the second part.
    assert (metrics["skipped"], metrics["first_skipped"]) == (1, 7)
    assert add_parts(second, first)["metrics"]["first_skipped"] == 1


def test_custom_metrics_are_averaged_and_become_arrays():
    first, second = a_part(1, extra={"own": [1.0, 5.0]}), a_part(3, extra={"own": [3.0, 5.0]})
    both = add_parts(first, second)["metrics"]
    assert both["extra"] == {"own": [2.5, 5.0]}
    np.testing.assert_array_equal(metrics_of(both).extra["own"], [2.5, 5.0])
    del both["extra"]  # as in a checkpoint of an earlier version
    assert metrics_of(both).extra == {}


def test_parts_of_a_population_are_added_for_each_learner():
    first = a_part(1, loss=[1.0, 5.0], skipped=[1, 0], first_skipped=[0, 0], gradient_steps=[2, 2])
    second = a_part(3, loss=[3.0, 5.0], skipped=[1, 1], first_skipped=[1, 1], gradient_steps=[6, 6])
    metrics = add_parts(first, second)["metrics"]
    assert metrics["loss"] == [2.5, 5.0]
    assert metrics["skipped"] == [2, 1]
    assert metrics["first_skipped"] == [0, 3]


@pytest.fixture
def in_parts(monkeypatch):
    """Return ``divide(iterations)``: run later chunks in such parts, whatever time they take."""

    def divide(iterations):
        monkeypatch.setattr(ChunkRunner, "_part", lambda self, seconds: iterations)
        monkeypatch.setattr(chunks, "_are_ready", lambda programs: True)

    return divide


def records(out, name):
    """Return the records of a run without their times."""
    return [
        {key: value for key, value in line.items() if "second" not in key}
        for line in read_lines(out / name)
    ]


def assert_close_records(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=1e-5), name


@pytest.fixture(scope="module")
def undivided(tmp_path_factory):
    out = tmp_path_factory.mktemp("undivided") / "run"
    return SimpleNamespace(out=out, result=run(CONFIG, out=out, environment=ENVIRONMENT))


def test_a_divided_run_is_bitwise_the_undivided_one(undivided, in_parts, tmp_path):
    assert CONFIG.iterations_per_chunk == 23
    in_parts(11)  # 11, 11 and 1
    divided = run(CONFIG, out=tmp_path / "run", environment=ENVIRONMENT)
    assert_identical(divided.state, undivided.result.state)
    assert_identical(divided.best_params, undivided.result.best_params)
    name = "evaluations.jsonl"
    assert records(tmp_path / "run", name) == records(undivided.out, name)
    name = "metrics.jsonl"
    assert_close_records(records(tmp_path / "run", name), records(undivided.out, name))


@pytest.fixture
def dispatched(monkeypatch):
    """Sizes of the programs that a run calls, in order."""
    sizes, next_program = [], ChunkRunner._next_program

    def recorded(self):
        program, size = next_program(self)
        sizes.append(size)
        return program, size

    monkeypatch.setattr(ChunkRunner, "_next_program", recorded)
    return sizes


def test_a_run_with_a_deadline_is_bitwise_the_one_without(
    undivided, dispatched, monkeypatch, tmp_path
):
    # Unoptimised, as in the fast suite, a program of one iteration rounds differently.
    monkeypatch.setattr(chunks, "first_part", lambda config, least: 11)
    config = replace(CONFIG, max_seconds=1_000.0)
    limited = run(config, out=tmp_path / "run", environment=ENVIRONMENT)
    assert dispatched[:3] == [11, 11, 1]
    assert sum(dispatched) == 23 * config.num_chunks
    assert_identical(limited.state, undivided.result.state)
    assert_identical(limited.best_params, undivided.result.best_params)
    name = "evaluations.jsonl"
    assert records(tmp_path / "run", name) == records(undivided.out, name)
    name = "metrics.jsonl"
    assert_close_records(records(tmp_path / "run", name), records(undivided.out, name))


def test_the_program_of_the_first_parts_is_compiled_before_the_run_only_with_a_deadline():
    asked = []
    static = StaticRun(None, None, SimpleNamespace(part_of_chunk=asked.append))
    assert compiled_programs(static, CONFIG, None) is static.programs
    assert asked == []
    assert compiled_programs(static, replace(CONFIG, max_seconds=9.0), None) is static.programs
    assert asked == [1]


LAYOUTS = {
    "prioritized": {"replay": "prioritized", "gradient_steps": 2},
    "replicas": {"devices": 2},
    "replicas by pmap": {"devices": 2, "mapping": "pmap"},
    "replicas averaged": {"devices": 2, "average_every": 4},
    "population by map": {"num_seeds": 2},
    "population by vmap": {"num_seeds": 2, "population": "vmap"},
    "one of 1": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", LAYOUTS.values(), ids=LAYOUTS)
def test_a_chunk_is_bitwise_its_parts_in_every_mapping(overrides):
    config = tiny(**overrides, total_rows=32 + 4 * 24)
    unit = config.iterations_per_average
    assert config.iterations_per_chunk == 24
    trainer, keys = make_mapped_trainer(config, environment=ENVIRONMENT), learner_keys(config)
    shape = jax.eval_shape(trainer.init, keys.train)
    programs = compile_programs(config, trainer, keys, shape)
    chunked, _ = programs.chunk(programs.init(keys.train, learner_hypers(config))[0])
    first = first_part(replace(config, max_seconds=1.0))
    assert 24 % first == 0
    for parts in ([unit, 12, 12 - unit], [first] * (24 // first)):
        state, _ = programs.init(keys.train, learner_hypers(config))
        for iterations in parts:
            state, _ = programs.part_of_chunk(iterations).result()(state)
        assert_identical(state, chunked)


def stopping(monkeypatch, calls):
    """Send SIGTERM before call number ``calls`` of a program."""
    dispatch, counted = ChunkRunner._dispatch, []

    def dispatch_and_stop(self, *arguments):
        counted.append(arguments)
        if len(counted) == calls:
            signal.raise_signal(signal.SIGTERM)
        return dispatch(self, *arguments)

    monkeypatch.setattr(ChunkRunner, "_dispatch", dispatch_and_stop)


@pytest.mark.slow
def test_a_run_stopped_inside_a_chunk_resumes_as_if_never_stopped(
    undivided, in_parts, monkeypatch, tmp_path
):
    in_parts(8)  # 8, 8 and 7
    never = run(CONFIG, out=tmp_path / "never", environment=ENVIRONMENT)
    out = tmp_path / "run"
    for calls, chunk, stops_at in ((3, 1, 39), (2, 2, 54)):
        with monkeypatch.context() as patch:
            stopping(patch, calls)
            stopped = run(CONFIG, out=out, environment=ENVIRONMENT, resume=True)
        assert stopped.summary["interrupted"]
        assert steps_of(out / CHECKPOINTS)[0] == chunk
        assert len(read_lines(out / "metrics.jsonl")) == chunk
        assert stopped.summary["rows"] == 32 + 4 * stops_at
    resumed = run(CONFIG, out=out, environment=ENVIRONMENT, resume=True)
    assert_identical(resumed.state, never.state)
    assert_identical(resumed.state, undivided.result.state)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(out, name) == records(tmp_path / "never", name)
    assert resumed.summary["rows"] == undivided.result.summary["rows"]


@pytest.mark.slow
def test_max_seconds_ends_a_slow_run_within_a_second_of_the_deadline(tmp_path):
    """The last evaluation, which is not divided, and the checkpoint may take longer."""
    config = tiny(
        hidden_sizes=(1024, 1024),
        batch_size=512,
        warmup_rows=1024,
        replay_capacity=4096,
        total_rows=10**6,
        log_every=80,
        eval_every=0,
        eval_episodes=1,
        checkpoint_every=None,
    )
    run(replace(config, total_rows=config.warmup_rows + 80), environment=ENVIRONMENT)
    started = time.perf_counter()
    limit = 25.0
    result = run(replace(config, max_seconds=limit), out=tmp_path / "run", environment=ENVIRONMENT)
    assert result.summary["ended_by"] == "deadline"
    (saved,) = [line for line in read_lines(tmp_path / "run" / "events.jsonl")
                if line["event"] == "checkpoint"]  # fmt: skip
    compiled = result.summary["compile_seconds"]
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) >= 2
    ended = saved["seconds"] - saved["blocked_seconds"] + compiled
    assert limit - 1.0 < ended < limit + 1.0
    assert time.perf_counter() - started < limit + 10.0


class AtEvaluations:
    """A callback that reads the state, but not after every chunk."""

    def __init__(self):
        self.rows = []

    def on_evaluation(self, context):
        assert jax.tree.leaves(context.params)
        self.rows.append(context.record["rows"])


class AtChunks(AtEvaluations):
    def on_chunk(self, context):
        assert jax.tree.leaves(context.params)


def test_no_chunk_runs_ahead_of_a_callback_that_reads_the_state_after_it(monkeypatch):
    asked = []
    may = HostLoop._may_run_ahead
    monkeypatch.setattr(
        HostLoop,
        "_may_run_ahead",
        lambda self, stop: asked.append(may(self, stop)) or asked[-1],
    )
    run(replace(CONFIG, total_rows=400), environment=ENVIRONMENT, callbacks=AtChunks())
    assert asked
    assert not any(asked)


def test_a_run_is_bitwise_identical_if_its_chunks_run_ahead(tmp_path, monkeypatch):
    config = replace(CONFIG, total_rows=700, eval_every=300)
    found, ran_ahead = {}, []
    is_short = ChunkRunner._is_short
    monkeypatch.setattr(
        ChunkRunner,
        "_is_short",
        lambda self, flight: ran_ahead.append(is_short(self, flight)) or ran_ahead[-1],
    )
    for ahead in (True, False):
        if not ahead:
            monkeypatch.setattr(HostLoop, "_may_run_ahead", lambda self, stop: False)
        out = tmp_path / str(ahead)
        watch = AtEvaluations()
        state = run(config, out=out, environment=ENVIRONMENT, callbacks=watch).state
        assert watch.rows
        found[ahead] = (state, records(out, "metrics.jsonl"), records(out, "evaluations.jsonl"))
    assert_identical(found[True][0], found[False][0])
    assert found[True][1:] == found[False][1:]
    assert len(found[True][1]) == config.num_chunks
    assert sum(ran_ahead) >= 2
