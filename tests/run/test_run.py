"""The host loop: what it counts, when it ends, what it leaves behind."""

import gc
import json
import signal
import threading
import time
import tracemalloc
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdqn
from jaxdqn.config.config import Config, to_dict
from jaxdqn.export.policy import load_policy, load_run
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.parallel.learners import run_keys
from jaxdqn.run.chunks import totals
from jaxdqn.run.compile import Programs
from jaxdqn.run.interrupt import StopRequest, stop_on_signals
from jaxdqn.run.loop import HostLoop
from jaxdqn.run.runner import run
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.training.evaluation import EvalInfo, make_evaluator
from jaxdqn.training.trainer import make_trainer, train
from jaxdqn.types import Counter, Counters, Metrics, make_counter
from tests.toys import noisy, quick_jit, quick_runs, tiny

SUMMARY_FIELDS = {
    "env", "preset", "algorithm", "seed", "env_steps", "rows", "gradient_steps",
    "compile_seconds", "train_seconds", "env_steps_per_second", "gradient_steps_per_second",
    "eval_return_mean", "eval_return_std", "eval_episodes", "best_eval_return_mean", "solved",
    "seconds_to_solve", "interrupted", "devices", "mapping", "device_kind", "versions",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Share compiled programs between runs of one shape, and compile without optimisation."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("xla")), 0.0), strict=True):
        jax.config.update(name, value)
    with quick_runs():
        yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


def small(**overrides):
    return tiny(**{"eval_episodes": 6, "eval_every": 200, **overrides})


def collector():
    """A logger that keeps what it is told, and whether it was closed."""
    seen = SimpleNamespace(records=[], closed=0)

    def close():
        seen.closed += 1

    return seen, Logger(log=lambda kind, record: seen.records.append((kind, record)), close=close)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run that was written to a directory."""
    out = tmp_path_factory.mktemp("runs") / "one"
    seen, logger = collector()
    config = small()
    result = run(config, out=out, preset="toy", environment=noisy(), loggers=[logger])
    return SimpleNamespace(out=out, seen=seen, config=config, result=result)


class Script:
    """Programs that follow a script of returns instead of compiling anything.

    The parameters are the number of chunks run. An evaluation returns
    ``evaluations[chunks]`` under the evaluation key, ``confirmations[chunks]``
    under the other.
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
                skipped=0, lost=0
            )
            return after, (metrics, after.counters)

        def evaluate(params, key, count):
            time.sleep(self.seconds)
            confirms = key is self.keys.confirm
            if confirms:
                self.counts.append(int(count))
            values = self.confirmations if confirms else self.evaluations
            # The best parameters are played anew at the end: not part of the script.
            value = values[int(params) - 1] if int(params) <= len(values) else 0.0
            return EvalInfo(np.full(4, value, np.float32), np.full(4, 10))

        def init(key, hyper):
            state = self.state(0)
            return state, state.counters

        unused = dict.fromkeys(
            ("snapshot", "revive", "refill", "preload", "perturb", "part_of_chunk")
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


def train_all(host, asked=None):
    """Run a scripted run from its start to its end."""
    return host.train(host.start(), asked or StopRequest())


def scripted(chunks=5, **overrides):
    """A configuration that evaluates after each of ``chunks`` chunks."""
    config = tiny(**{"total_rows": 32 + 100 * chunks, "eval_every": 1, **overrides})
    assert config.num_chunks == chunks
    assert config.chunks_per_evaluation == 1
    return config


def test_solved_needs_fresh_episodes_to_confirm_it_and_ends_the_run():
    config = scripted(solve_return=10.0, stop_when_solved=True)
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
    # Every confirmation, and the last look at the best parameters, has episodes of its own.
    assert len(set(script.counts)) == len(script.counts) == 3
    assert (summary["eval_return_mean"], summary["best_fresh_return_mean"]) == (12.0, 11.0)


def test_seconds_to_solve_count_acting_learning_and_evaluating():
    config = scripted(solve_return=10.0, stop_when_solved=True)
    host = Script(config, [0.0, 10.0], [0.0, 10.0], seconds=0.03).host()
    train_all(host)
    summary = host.summary()
    # Two chunks, two evaluations, one confirmation.
    assert summary["seconds_to_solve"] >= 5 * 0.03
    assert summary["train_seconds"] >= 2 * 0.03
    assert summary["eval_seconds"] >= 4 * 0.03


def test_a_solved_run_goes_on_unless_told_to_stop():
    config = scripted(solve_return=10.0)
    host = Script(config, [10.0] * 5, [10.0] * 5).host()
    assert int(train_all(host).agent.params) == 5
    assert host.summary()["solved"]


def test_a_run_without_a_bar_is_not_solved():
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


def test_the_last_chunk_is_evaluated_once_whatever_the_period():
    for every, evaluated in ((300, [3, 5]), (0, [5])):
        config = tiny(total_rows=532, eval_every=every)
        seen, logger = collector()
        train_all(Script(config, [1.0] * 5).host([logger]))
        rows = [record["rows"] for kind, record in seen.records if kind == "evaluation"]
        assert rows == [chunk * 100 for chunk in evaluated]


def test_a_run_asked_to_end_before_its_first_chunk_still_reports():
    asked = StopRequest()
    asked.handle_signal(signal.SIGTERM, None)
    host = Script(scripted(), [1.0] * 5).host()
    assert int(train_all(host, asked).agent.params) == 0
    assert host.summary()["rows"] == 0
    assert host.summary()["best_fresh_return_mean"] is None


def test_the_host_remembers_nothing_of_past_chunks():
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


def test_a_chunk_reports_scalars_however_long_it_is():
    trainer = make_trainer(small(), environment=noisy())
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    for iterations in (1, 1_000):
        _, metrics = jax.eval_shape(trainer.chunk(iterations), state)
        assert all(leaf.shape == () for leaf in metrics)


def test_totals_are_right_past_32_bits():
    rows = 2**31 + 12_345
    counters = Counters(make_counter(rows), make_counter(rows - 7), make_counter(3))
    assert totals(counters) == {"rows": rows, "env_steps": rows - 7, "gradient_steps": 3}
    learners = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), counters)
    assert totals(learners)["rows"] == 2 * rows


def test_the_run_directory_holds_what_it_should(finished):
    assert sorted(path.name for path in finished.out.iterdir()) == [
        ".lock", "best", "checkpoints", "config.json", "curve.png", "evaluations.jsonl",
        "events.jsonl", "last", "metrics.jsonl", "parts.json", "summary.json",
    ]  # fmt: skip
    assert (finished.out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert read_config(finished.out) == Config(**{**vars(finished.config), "env": "noisy"})
    assert json.loads((finished.out / "config.json").read_text())["env"] == "noisy"


def test_the_summary_has_every_field_and_truetotals(finished):
    summary = json.loads((finished.out / "summary.json").read_text())
    assert set(summary) >= SUMMARY_FIELDS
    assert summary == json.loads(json.dumps(finished.result.summary))
    config = finished.config
    assert summary["rows"] == 32 + config.num_chunks * config.iterations_per_chunk * 4
    assert summary["gradient_steps"] == config.total_gradient_steps
    assert 0 < summary["env_steps"] < summary["rows"]
    assert summary["env_steps_per_second"] == pytest.approx(
        summary["env_steps"] / summary["train_seconds"]
    )
    assert (summary["env"], summary["preset"], summary["algorithm"]) == ("noisy", "toy", "dqn")
    assert summary["versions"]["jax"] == jax.__version__
    assert summary["interrupted"] is False


def test_metrics_are_a_line_a_chunk_and_add_up(finished):
    metrics = read_lines(finished.out / "metrics.jsonl")
    assert [record["chunk"] for record in metrics] == [1, 2, 3, 4]
    assert np.all(np.diff([record["rows"] for record in metrics]) == 92)
    assert metrics[-1]["env_steps"] == finished.result.summary["env_steps"]
    # A row is an environment step, or the reset after an episode that has ended.
    resets = metrics[-1]["rows"] - metrics[-1]["env_steps"]
    ended = sum(record["episodes"] for record in metrics)
    assert abs(resets - ended) <= 4 + 32


def test_loggers_hear_everything_and_are_closed_once(finished):
    kinds = [kind for kind, _ in finished.seen.records]
    assert kinds[0] == "start"
    assert kinds[-1] == "summary"
    assert kinds.count("metrics") == 4
    assert finished.seen.records[0][1]["config"] == to_dict(read_config(finished.out))
    assert finished.seen.closed == 1


def test_evaluations_use_the_same_episodes_and_the_parameters_reported(finished):
    evaluations = read_lines(finished.out / "evaluations.jsonl")
    trainer = make_trainer(finished.config, environment=noisy())
    evaluate = jax.jit(make_evaluator(trainer.agent, trainer.environment, 6))
    key = jax.random.fold_in(run_keys(finished.config.seed).evaluate, 0)
    last = evaluate(finished.result.state.agent.params, key)
    assert evaluations[-1]["return_mean"] == pytest.approx(mean_return(last), rel=1e-6)
    best = evaluate(finished.result.best_params, key)
    assert max(record["return_mean"] for record in evaluations) == pytest.approx(
        mean_return(best), rel=1e-6
    )


def mean_return(info):
    return float(np.mean(np.asarray(info.returns)))


def test_the_run_is_the_pure_training_of_its_key(finished):
    pure = quick_jit(train(finished.config, environment=noisy()))
    state, _ = pure(run_keys(finished.config.seed).train)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
        finished.result.state.agent.params,
        state.agent.params,
    )


def test_saved_parameters_come_back_bit_for_bit(finished):
    for which, params in (
        ("best", finished.result.best_params),
        ("last", finished.result.state.agent.params),
    ):
        _, _, restored = load_run(finished.out, which, environment=noisy())
        jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_a_loaded_policy_is_greedy_in_plain_python(finished):
    policy = load_policy(finished.out, "last", environment=noisy())
    obs = np.random.default_rng(0).uniform(1, 9, (20, 2)).astype(np.float32)
    params = jax.tree.map(np.asarray, finished.result.state.agent.params)
    q = q_by_hand(params, obs)
    expected = np.argmax(q, axis=-1)
    assert len(set(expected)) == 2
    actions = policy(obs)
    assert type(actions) is np.ndarray
    np.testing.assert_array_equal(actions, expected)
    assert type(policy(list(obs[0]))) is int
    assert [policy(each) for each in obs] == list(expected)
    with pytest.raises(ValueError, match=r"obs.shape=\(3,\): must be \(2,\)"):
        policy(np.zeros(3))


def q_by_hand(params, obs):
    """Apply the dense layers, found by their widths, with a ReLU between them."""
    layers = {
        leaf.shape[0]: (leaf, params_bias(params, leaf.shape[1]))
        for leaf in jax.tree.leaves(params)
        if leaf.ndim == 2
    }
    hidden = np.maximum(obs @ layers[2][0] + layers[2][1], 0)
    return hidden @ layers[16][0] + layers[16][1]


def params_bias(params, width):
    (bias,) = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == (width,)]
    return bias


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_other_seeds_others():
    def learned(seed):
        params = run(small(seed=seed), environment=noisy()).state.agent.params
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])

    seeds = [learned(seed) for seed in range(5)]
    np.testing.assert_array_equal(learned(0), seeds[0])
    for index, one in enumerate(seeds):
        assert not any(np.array_equal(one, other) for other in seeds[:index])


@pytest.mark.slow
def test_two_devices_train_and_save_parameters_that_one_device_plays(tmp_path):
    run(small(devices=2), out=tmp_path / "two", environment=noisy())
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert (summary["devices"], summary["mapping"]) == (2, "shard_map")
    assert summary["rows"] == 32 + 4 * 92
    assert load_policy(tmp_path / "two", environment=noisy())(np.ones(2)) in (0, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_at_the_next_chunk_with_everything_written(tmp_path, number):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    seen, collecting = collector()

    def log(kind, record):
        collecting.log(kind, record)
        if kind == "metrics" and record["chunk"] == 2:
            signal.raise_signal(number)

    out = tmp_path / "run"
    run(small(), out=out, environment=noisy(), loggers=[collecting._replace(log=log)])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["interrupted"] is True
    assert [record["chunk"] for record in read_lines(out / "metrics.jsonl")] == [1, 2]
    assert summary["rows"] == read_lines(out / "metrics.jsonl")[-1]["rows"]
    assert all((out / name).exists() for name in ("best", "last", "curve.png"))
    assert seen.closed == 1
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]


def test_a_second_interrupt_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_leaves_signals_alone():
    found = []

    def work():
        with stop_on_signals() as asked:
            found.append((bool(asked), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGTERM))]


def test_a_directory_in_use_is_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    (tmp_path / "precious.txt").write_text("mine")
    monkeypatch.setattr(
        "jaxdqn.run.program_cache.compile_programs", lambda *_: pytest.fail("compiled")
    )
    seen, logger = collector()
    with pytest.raises(ValueError, match=r"out=.*must be a new or an empty directory"):
        run(small(), out=tmp_path, environment=noisy(), loggers=[logger])
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    assert seen.closed == 1


def test_a_replay_above_the_free_memory_is_refused_before_a_directory_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("jaxdqn.replay.memory.free_bytes", lambda device=None: 100)
    with pytest.raises(ValueError, match="of which 100 are free"):
        run(small(), out=tmp_path / "run", environment=noisy())
    assert not (tmp_path / "run").exists()


def test_too_few_devices_are_refused():
    with pytest.raises(ValueError, match="devices=16: must be at most the 8 cpu devices here"):
        run(small(devices=16, num_envs=16, batch_size=16), environment=noisy())


@pytest.mark.parametrize(
    ("which", "message"),
    [("bast", "which='bast': must be one of best, last"), ("best", "must be a run directory")],
)
def test_a_policy_that_is_not_there_is_refused(tmp_path, which, message):
    with pytest.raises(ValueError, match=message):
        jaxdqn.load_policy(tmp_path, which)
