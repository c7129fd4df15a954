"""The host loop with scripted programs: totals, best parameters, solving and ending a run."""

import gc
import signal
import time
import tracemalloc
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.backend_choices import dispatches_asynchronously
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.parallel.learners import run_keys
from jaxdqn.run.chunks import ChunkRunner, totals
from jaxdqn.run.compile import Programs
from jaxdqn.run.interrupt import StopRequest
from jaxdqn.run.loop import HostLoop
from jaxdqn.training.evaluation import EvalInfo
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Counter, Counters, Metrics, make_counter
from tests.run.test_run import collector, small
from tests.toys import noisy, tiny


class Script:
    """Programs that follow a script of returns and compile nothing.

    The parameters are the number of chunks run. The return after chunk n is
    ``evaluations[n - 1]`` with the evaluation key, and ``confirmations[n - 1]``
    with the confirmation key.
    """

    def __init__(self, config, evaluations, confirmations=(), seconds=0.0):
        self.config, self.seconds = config, seconds
        self.evaluations, self.confirmations = evaluations, confirmations
        self.counts = []
        self.keys = run_keys(0)

    def state(self, chunks):
        rows = chunks * self.config.iterations_per_chunk * self.config.rows_per_iteration
        count = Counter(high=np.int32(rows // 2**30), low=np.int32(rows % 2**30))
        counters = Counters(count, count, count)
        return SimpleNamespace(agent=SimpleNamespace(params=np.array(chunks)), counters=counters)

    def programs(self):
        def chunk(state):
            time.sleep(self.seconds)
            after = self.state(int(state.agent.params) + 1)
            # The donated buffer is overwritten, as on a device.
            state.agent.params[...] = -1
            metrics = Metrics(*np.ones(len(Metrics._fields), np.float32))._replace(
                illegal=(), skipped=0, lost=0, extra={}, diagnostics=()
            )
            return after, (metrics, after.counters)

        def evaluate(params, key, count):
            time.sleep(self.seconds)
            confirms = key is self.keys.confirm
            if confirms:
                self.counts.append(int(count))
            values = self.confirmations if confirms else self.evaluations
            # The best parameters are evaluated again at the end: not part of the script.
            value = values[int(params) - 1] if int(params) <= len(values) else 0.0
            return EvalInfo(np.full(4, value, np.float32), np.full(4, 10), np.arange(4))

        def init(key, hyper):
            state = self.state(0)
            return state, state.counters

        unused = dict.fromkeys(
            (
                "snapshot",
                "evaluate_at_epsilon",
                "revive",
                "refill",
                "preload",
                "perturb",
                "part_of_chunk",
            )
        )
        return Programs(
            init=init,
            params=lambda state: state.agent.params,
            chunk=chunk,
            evaluate=evaluate,
            evaluate_one=evaluate,
            copy=np.array,
            **unused,
        )

    def host(self, loggers=()):
        return HostLoop(self.config, self.programs(), self.keys, loggers)


def train_all(host, stop=None):
    """Run a scripted run from its start to its end."""
    return host.train(host.start(), StopRequest() if stop is None else stop)


def scripted(chunks=5, **overrides):
    """Return a configuration that evaluates after each of ``chunks`` chunks."""
    config = tiny(**{"total_rows": 32 + 100 * chunks, "eval_every": 1, **overrides})
    assert config.num_chunks == chunks
    assert config.chunks_per_evaluation == 1
    return config


def test_solved_needs_fresh_episodes_to_confirm_it_and_ends_the_run():
    config = scripted(solve_return=10.0, stop_when="solved")
    script = Script(config, [9.0, 10.0, 12.0, 12.0, 12.0], [99.0, 9.0, 11.0])
    seen, logger = collector()
    host = script.host([logger])
    state = train_all(host)
    summary = host.summary()
    # Chunk 1 is below the bar, chunk 2 is not confirmed, chunk 3 is.
    assert int(state.agent.params) == 3
    assert summary["solved"]
    purposes = [record["purpose"] for kind, record in seen.records if kind == "evaluation"]
    assert purposes == ["evaluate", "evaluate", "confirm", "evaluate", "confirm"]
    # Every confirmation, and the last evaluation of the best parameters, has its own episodes.
    assert len(set(script.counts)) == len(script.counts) == 3
    assert (summary["eval_return_mean"], summary["best_fresh_return_mean"]) == (12.0, 11.0)


def test_seconds_to_solve_count_acting_learning_and_evaluating():
    config = scripted(solve_return=10.0, stop_when="solved")
    host = Script(config, [0.0, 10.0], [0.0, 10.0], seconds=0.03).host()
    train_all(host)
    summary = host.summary()
    # Two chunks, two evaluations, one confirmation.
    assert summary["seconds_to_solve"] >= 5 * 0.03
    assert summary["train_seconds"] >= 2 * 0.03
    assert summary["eval_seconds"] >= 4 * 0.03


def test_a_solved_run_continues_by_default():
    config = scripted(solve_return=10.0)
    host = Script(config, [10.0] * 5, [10.0] * 5).host()
    assert int(train_all(host).agent.params) == 5
    assert host.summary()["solved"]


def test_a_run_without_solve_return_is_not_solved():
    host = Script(scripted(), [10.0] * 5, [10.0] * 5).host()
    train_all(host)
    summary = host.summary()
    assert summary["solved"] is False
    assert summary["seconds_to_solve"] is None


def test_best_parameters_are_a_copy_of_the_first_best():
    host = Script(scripted(), [1.0, 7.0, 3.0, 7.0, 2.0]).host()
    state = train_all(host)
    assert int(host.best_params) == 2
    assert int(state.agent.params) == 5
    summary = host.summary()
    assert summary["best_eval_return_mean"] == 7.0
    assert summary["eval_return_mean"] == 2.0


def test_the_last_chunk_is_evaluated_once_for_any_period():
    for every, evaluated in ((300, [3, 5]), (0, [5])):
        config = tiny(total_rows=532, eval_every=every)
        seen, logger = collector()
        train_all(Script(config, [1.0] * 5).host([logger]))
        rows = [record["rows"] for kind, record in seen.records if kind == "evaluation"]
        assert rows == [chunk * 100 for chunk in evaluated]


def test_a_run_stopped_before_its_first_chunk_still_has_a_summary():
    stop = StopRequest()
    stop.handle_signal(signal.SIGTERM, None)
    host = Script(scripted(), [1.0] * 5).host()
    assert int(train_all(host, stop).agent.params) == 0
    assert host.summary()["rows"] == 0
    assert host.summary()["best_fresh_return_mean"] is None


@pytest.mark.slow
def test_host_memory_does_not_grow_with_the_number_of_chunks():
    def growth(chunks):
        host = Script(tiny(total_rows=32 + 100 * chunks, eval_every=0), []).host()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        train_all(host)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        return grown

    # A record kept for each chunk would take about a kilobyte each.
    assert growth(700) < growth(100) + 200_000


def test_the_metrics_of_a_chunk_of_any_length_are_scalars():
    trainer = make_trainer(small(), environment=noisy())
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    for iterations in (1, 1_000):
        _, metrics = jax.eval_shape(trainer.chunk(iterations), state)
        assert all(leaf.shape == () for leaf in jax.tree.leaves(metrics))
        assert metrics.extra == {}


def test_totals_are_exact_past_32_bits():
    rows = 2**31 + 12_345
    counters = Counters(make_counter(rows), make_counter(rows - 7), make_counter(3))
    assert totals(counters) == {"rows": rows, "env_steps": rows - 7, "gradient_steps": 3}
    learners = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), counters)
    assert totals(learners)["rows"] == 2 * rows


class Eager(Script):
    """A script whose chunks can run ahead, and that records dispatches and reads of metrics."""

    def __init__(self, config, **options):
        super().__init__(config, [0.0] * config.num_chunks, **options)
        self.events = []

    def programs(self):
        programs, events = super().programs(), self.events

        class Loss:
            def __init__(self, chunk):
                self.chunk = chunk

            def __array__(self, dtype=None, copy=None):
                events.append(f"read {self.chunk}")
                return np.float32(1)

        def chunk(state):
            after, (metrics, counters) = programs.chunk(state)
            number = int(after.agent.params)
            events.append(f"dispatch {number}")
            return after, (metrics._replace(loss=Loss(number)), counters)

        def evaluate(params, key, count):
            events.append(f"evaluate {int(params)}")
            return programs.evaluate(params, key, count)

        return programs._replace(
            chunk=chunk, evaluate=evaluate, evaluate_one=evaluate, runs_ahead=True
        )

    def host(self, loggers=(), **options):
        return HostLoop(self.config, self.programs(), self.keys, loggers, **options)


def six_chunks(**overrides):
    """Return a configuration that evaluates after each third of six chunks."""
    config = tiny(total_rows=32 + 600, eval_every=300, **overrides)
    assert (config.num_chunks, config.chunks_per_evaluation) == (6, 3)
    return config


AHEAD = [
    "dispatch 1", "read 1",  # the first chunk is not known to be short
    "dispatch 2", "dispatch 3", "read 2", "read 3", "evaluate 3",
    "dispatch 4", "dispatch 5", "read 4", "dispatch 6", "read 5", "read 6", "evaluate 6",
]  # fmt: skip


def test_a_chunk_is_dispatched_before_the_metrics_of_the_last_are_read():
    script = Eager(six_chunks())
    seen, logger = collector()
    train_all(script.host([logger]))
    assert script.events[: len(AHEAD)] == AHEAD
    metrics = [record["chunk"] for kind, record in seen.records if kind == "metrics"]
    assert metrics == [1, 2, 3, 4, 5, 6]


def in_order(events):
    """Return whether the metrics of every chunk are read before the next is dispatched."""
    return [event for event in events if "evaluate" not in event] == [
        f"{what} {chunk}" for chunk in range(1, 7) for what in ("dispatch", "read")
    ]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_no_chunk_runs_ahead_if_a_call_waits_for_its_program(asynchronous):
    name = "jax_cpu_enable_async_dispatch"
    before = jax.config.read(name)
    jax.config.update(name, asynchronous)
    try:
        assert dispatches_asynchronously() is asynchronous
    finally:
        jax.config.update(name, before)


class Watcher:
    def on_chunk(self, context):
        """Do nothing."""


@pytest.mark.parametrize("reason", ["callback", "checkpoint", "long chunks", "programs"])
def test_no_chunk_runs_ahead_where_something_reads_the_state(monkeypatch, reason):
    script = Eager(six_chunks())
    callbacks = [Watcher()] if reason == "callback" else []
    host = script.host(callbacks=callbacks)
    if reason == "checkpoint":
        saved = []
        host._checkpoints = SimpleNamespace(
            is_due=lambda chunk: True, has_saved=lambda chunk: True, wait=lambda: None
        )
        monkeypatch.setattr(
            host._saver, "save", lambda state: saved.append(int(state.agent.params))
        )
    if reason == "long chunks":
        monkeypatch.setattr(ChunkRunner, "_is_short", lambda self, flight: False)
    if reason == "programs":
        host._programs = host._programs._replace(runs_ahead=False)
    train_all(host)
    assert in_order(script.events)
    if reason == "checkpoint":
        assert saved == [1, 2, 3, 4, 5, 6]


def test_a_stop_ends_the_run_after_the_chunk_in_flight():
    script, stop = Eager(six_chunks()), StopRequest()

    def log(kind, record):
        if kind == "metrics" and record["chunk"] == 4:  # chunk 5 is in flight
            stop.record("SIGTERM")

    host = script.host([Logger(log=log, close=lambda: None)])
    state = train_all(host, stop)
    assert host.progress.chunk == int(state.agent.params) == 5
    assert host.progress.totals["rows"] == 5 * 100
    assert host.ended_by(stop) == "SIGTERM"


def test_chunks_that_run_ahead_have_the_time_between_the_reads():
    script = Eager(six_chunks(), seconds=0.02)
    host = script.host()
    started = time.perf_counter()
    train_all(host)
    assert 6 * 0.02 <= host.progress.train_seconds <= time.perf_counter() - started


def test_a_rollback_drops_the_chunk_in_flight(monkeypatch):
    script = Eager(six_chunks())
    seen, logger = collector()
    host = script.host([logger])
    diverged = iter([False, False, False, True])
    monkeypatch.setattr(host._divergence, "needs_handling", lambda metrics: next(diverged, False))
    monkeypatch.setattr(host._divergence, "handle", lambda state, metrics: "checkpoint")

    def roll_back(restored):
        host.progress.chunk = 3
        return script.state(3)

    monkeypatch.setattr(host._saver, "roll_back", roll_back)
    state = train_all(host)
    metrics = [record["chunk"] for kind, record in seen.records if kind == "metrics"]
    assert metrics == [1, 2, 3, 4, 4, 5, 6]
    assert int(state.agent.params) == 6
    assert script.events.count("dispatch 5") == 2
    assert script.events.count("read 5") == 1
