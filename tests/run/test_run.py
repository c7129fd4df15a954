"""Complete small runs: their files, summary, signals and rejected inputs."""

import json
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdqn.config.config import Config, to_dict
from jaxdqn.export.policy import load_policy, load_run
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.parallel.learners import run_keys
from jaxdqn.run.runner import run
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.training.evaluation import make_evaluator
from jaxdqn.training.trainer import make_trainer, train
from tests.toys import noisy, quick_jit, quick_runs, shared_programs, tiny

SUMMARY_FIELDS = {
    "env", "preset", "algorithm", "seed", "env_steps", "rows", "gradient_steps",
    "compile_seconds", "train_seconds", "env_steps_per_second", "gradient_steps_per_second",
    "eval_return_mean", "eval_return_std", "eval_episodes", "best_eval_return_mean", "solved",
    "seconds_to_solve", "interrupted", "devices", "mapping", "device_kind", "versions",
    "machine",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Share compiled programs between runs of one shape, and compile without optimisation.

    No chunk is divided, however slow the machine is: without optimisation a part of one iteration
    differs by rounding from an iteration of the chunk.
    """
    with (
        shared_programs(tmp_path_factory.mktemp("xla")),
        quick_runs(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("jaxdqn.run.chunk_parts.LONG_CHUNK", float("inf"))
        yield


def small(**overrides):
    return tiny(**{"eval_episodes": 6, "eval_every": 200, **overrides})


def collector():
    """Return a list of records and closings, and a logger that fills it."""
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


def test_the_run_directory_holds_its_files(finished):
    assert sorted(path.name for path in finished.out.iterdir()) == [
        ".lock", "best", "checkpoints", "config.json", "curve.png", "evaluations.jsonl",
        "events.jsonl", "last", "metrics.jsonl", "parts.json", "start.json",
        "summary.json",
    ]  # fmt: skip
    assert (finished.out / "curve.png").read_bytes().startswith(b"\x89PNG")
    stored = {**vars(finished.config), "env": "noisy", "reset": "every-step"}
    assert finished.config.reset == "auto"
    assert read_config(finished.out) == Config(**stored)
    assert json.loads((finished.out / "config.json").read_text())["env"] == "noisy"


def test_the_summary_has_every_field_and_true_totals(finished):
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


def test_metrics_have_one_line_a_chunk_and_add_up(finished):
    metrics = read_lines(finished.out / "metrics.jsonl")
    assert [record["chunk"] for record in metrics] == [1, 2, 3, 4]
    assert np.all(np.diff([record["rows"] for record in metrics]) == 92)
    assert metrics[-1]["env_steps"] == finished.result.summary["env_steps"]
    # A row is an environment step, or the reset after an episode that has ended.
    resets = metrics[-1]["rows"] - metrics[-1]["env_steps"]
    ended = sum(record["episodes"] for record in metrics)
    assert abs(resets - ended) <= 4 + 32


def test_loggers_receive_every_record_and_are_closed_once(finished):
    kinds = [kind for kind, _ in finished.seen.records]
    assert kinds[0] == "start"
    assert kinds[-1] == "summary"
    assert kinds.count("metrics") == 4
    assert finished.seen.records[0][1]["config"] == to_dict(read_config(finished.out))
    assert finished.seen.closed == 1


def test_every_evaluation_uses_the_same_episodes(finished):
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


def test_a_run_equals_the_pure_training_function_with_its_key(finished):
    pure = quick_jit(train(finished.config, environment=noisy()))
    state, _ = pure(run_keys(finished.config.seed).train)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
        finished.result.state.agent.params,
        state.agent.params,
    )


def test_saved_parameters_are_restored_bitwise(finished):
    for which, params in (
        ("best", finished.result.best_params),
        ("last", finished.result.state.agent.params),
    ):
        _, _, restored = load_run(finished.out, which, environment=noisy())
        jax.tree.map(np.testing.assert_array_equal, restored, params)


@pytest.mark.slow
def test_runs_of_one_seed_are_bitwise_identical_and_of_other_seeds_differ():
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_stops_the_run_after_the_chunk_with_all_files_written(tmp_path, number):
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


def test_a_directory_in_use_is_rejected_before_compilation(tmp_path, monkeypatch):
    (tmp_path / "precious.txt").write_text("mine")
    monkeypatch.setattr(
        "jaxdqn.run.program_cache.compile_programs", lambda *_: pytest.fail("compiled")
    )
    seen, logger = collector()
    with pytest.raises(ValueError, match=r"out=.*must be a new or an empty directory"):
        run(small(), out=tmp_path, environment=noisy(), loggers=[logger])
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    assert seen.closed == 1


def test_a_replay_above_the_free_memory_is_rejected_before_a_directory_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("jaxdqn.replay.memory.free_bytes", lambda device=None: 100)
    with pytest.raises(ValueError, match="but only 100 are free"):
        run(small(), out=tmp_path / "run", environment=noisy())
    assert not (tmp_path / "run").exists()


def test_too_few_devices_are_rejected():
    with pytest.raises(ValueError, match="devices=16: must be at most the 8 cpu devices here"):
        run(small(devices=16, num_envs=16, batch_size=16), environment=noisy())
