"""Runs of populations: each learner equals a separate run, and how they are reported."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdqn.cli import evaluate, plot
from jaxdqn.cli import run as run_command
from jaxdqn.config.config import replace, to_dict
from jaxdqn.errors import RunFailed
from jaxdqn.export.policy import load_policy, load_run
from jaxdqn.monitoring import curves
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.monitoring.records import chunk_record, evaluation_record, learner_identity
from jaxdqn.monitoring.tables import learner_table, population_tables
from jaxdqn.monitoring.terminal import (
    evaluation_line,
    make_progress_logger,
    progress_items,
)
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.run.compile import Programs
from jaxdqn.run.interrupt import StopRequest
from jaxdqn.run.loop import HostLoop
from jaxdqn.run.runner import run
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.jsonl import read_lines, write_json
from jaxdqn.training.evaluation import EvalInfo
from jaxdqn.types import Counter, Counters, Metrics
from tests.cli.test_cli import SMALL
from tests.run.test_run import (
    collector,
)
from tests.toys import OPTIMISED, noisy, quick_runs, shared_programs, tiny
from tests.trees import assert_identical, slice_of

RESULTS = ("eval_return_mean", "best_eval_return_mean")
NAN = math.nan


def small(**overrides):
    """Return a configuration of four chunks of 100 rows, evaluated after every second one."""
    return tiny(**{"total_rows": 432, "eval_episodes": 6, "eval_every": 200, **overrides})


def config_of_learner(config, learner):
    """Return the configuration of a separate run of one learner of a population."""
    identity = learner_identity(config, learner)
    del identity["learner"]
    plain = replace(config, num_seeds=1, sweep=(), devices=1, population="auto")
    return replace(plain, **identity)


@pytest.fixture(scope="module", autouse=True)
def optimised(tmp_path_factory):
    """Share programs between runs; only with optimisation is the law of ``map`` bitwise."""
    with shared_programs(tmp_path_factory.mktemp("xla")), quick_runs(OPTIMISED):
        yield


SWEPT = small(num_seeds=2, seed=5, sweep=("learning-rate=3e-3,1e29",), checkpoint_every=0)
"""Two seeds of two learning rates; with the larger one nothing stays finite."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A population, and each of its learners as a separate run."""
    out = tmp_path_factory.mktemp("runs") / "swept"
    seen, logger = collector()
    together = run(SWEPT, out=out, environment=noisy(), loggers=[logger])
    separate = []
    for learner in range(SWEPT.learners):
        records, record_logger = collector()
        # The default guard would stop a separate run that diverges.
        config = replace(config_of_learner(SWEPT, learner), guard="skip")
        result = run(config, environment=noisy(), loggers=[record_logger])
        separate.append((result, records.records))
    return SimpleNamespace(out=out, together=together, records=seen.records, separate=separate)


@pytest.mark.slow
def test_every_learner_equals_a_separate_run_of_its_seed_and_hyper_parameters(swept):
    rates = [float(result.state.hyper.learning_rate) for result, _ in swept.separate]
    np.testing.assert_allclose(rates, [3e-3, 3e-3, 1e29, 1e29], rtol=1e-6)
    for learner, (result, _) in enumerate(swept.separate):
        assert_identical(slice_of(swept.together.state, learner), result.state)
        outcome = swept.together.summary["learners"][learner]
        assert {name: outcome[name] for name in RESULTS} == {
            name: result.summary[name] for name in RESULTS
        }
    key_data = jax.random.key_data(swept.together.state.key).tolist()
    # A seed has the same key in every combination.
    assert key_data[0] == key_data[2]
    assert key_data[1] == key_data[3] != key_data[0]


@pytest.mark.slow
def test_diverged_learners_are_named_and_do_not_affect_the_others(swept):
    # The test above shows that the results are bitwise identical to separate runs.
    summary = swept.together.summary
    diverged = [one["diverged_at_chunk"] for one in summary["learners"]]
    assert diverged == [None, None, 1, 1]
    assert summary["best_learner"] < 2
    assert summary["last_learner"] < 2
    params = swept.together.state.agent.params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    events = [record for kind, record in swept.records if kind == "event"]
    assert [(event["learner"], event["learning_rate"]) for event in events] == [
        (2, 1e29),
        (3, 1e29),
    ]
    assert "diverged in chunk 1: learner 2, seed 5" in events[0]["message"]
    # Means over learners leave out those in which the value is not finite.
    for record in read_lines(swept.out / "metrics.jsonl"):
        assert record["loss"] is not None
        assert None in record["learners"]["loss"]


@pytest.mark.slow
def test_a_run_ends_when_every_learner_has_diverged():
    config = replace(SWEPT, sweep=("learning_rate=1e28,1e29",))
    with pytest.raises(RunFailed, match="every learner"):
        run(config, environment=noisy())


@pytest.mark.slow
def test_the_records_of_a_population_hold_those_of_the_separate_runs(swept):
    for kind in ("metrics", "evaluation"):
        together = [record for name, record in swept.records if name == kind]
        separate = [[r for name, r in records if name == kind] for _, records in swept.separate]
        assert len(together) == {"metrics": 4, "evaluation": 2}[kind]
        for index, record in enumerate(together):
            each = [records[index] for records in separate]
            for count in ("rows", "env_steps", "gradient_steps"):
                assert record[count] == sum(one[count] for one in each)
            np.testing.assert_allclose(
                record["return_mean"], np.mean([one["return_mean"] for one in each]), rtol=1e-6
            )
            if kind == "metrics":
                for name in ("return_mean", "length_mean", "loss", "grad_norm", "epsilon"):
                    values = np.array(record["learners"][name])
                    separate_values = np.array([one[name] for one in each])
                    # Whether a diverged value is infinite or NaN depends on the order of sums.
                    finite = np.isfinite(values)
                    np.testing.assert_array_equal(finite, np.isfinite(separate_values))
                    np.testing.assert_allclose(values[finite], separate_values[finite], rtol=1e-6)
            else:
                assert record["learners"] == [one["return_mean"] for one in each]


@pytest.mark.slow
def test_the_best_parameters_are_those_of_the_best_learner(swept):
    summary = swept.together.summary
    bests = [result.summary["best_eval_return_mean"] for result, _ in swept.separate]
    best = int(np.argmax(bests[:2]))
    assert (summary["best_learner"], summary["best_eval_return_mean"]) == (best, bests[best])
    assert_identical(swept.together.best_params, swept.separate[best][0].best_params)


@pytest.mark.slow
def test_two_devices_hold_half_of_the_learners_each_and_compute_the_same(swept):
    result = run(replace(SWEPT, devices=2), environment=noisy())
    assert_identical(result.state, swept.together.state)
    assert_identical(result.best_params, swept.together.best_params)
    assert result.summary["mapping"] == "population of 4, shard_map"
    for leaf in jax.tree.leaves(result.state):
        shards = {shard.device: shard.data.shape[0] for shard in leaf.addressable_shards}
        assert list(shards.values()) == [2, 2]


class Script:
    """Programs of a population that follow a script: returns [chunks][P], skipped [chunks][P]."""

    def __init__(self, config, returns, skipped=None):
        self.config, self.returns = config, returns
        self.skipped = skipped or [[0] * config.learners] * len(returns)
        self.keys = learner_keys(config)

    def state(self, chunks):
        count = Counter(*np.zeros((2, self.config.learners), np.int32))
        params = np.arange(self.config.learners) + 10 * chunks
        agent = SimpleNamespace(params=params)
        return SimpleNamespace(agent=agent, counters=Counters(count, count, count))

    def programs(self):
        def chunk(state):
            after = self.state(int(state.agent.params[0]) // 10 + 1)
            place = int(after.agent.params[0]) // 10 - 1
            ones = np.ones(self.config.learners, np.float32)
            metrics = Metrics(*[ones] * len(Metrics._fields))._replace(
                illegal=(),
                diagnostics=(),
                skipped=np.array(self.skipped[place]),
                lost=0 * ones,
                gradient_steps=5 * ones,
                extra={},
            )
            return after, (metrics, after.counters)

        def evaluate(params, key, count):
            returns = np.array(self.returns[int(params[0]) // 10 - 1], np.float32)
            return EvalInfo(
                np.tile(returns[:, None], 4),
                np.full((len(returns), 4), 10),
                np.tile(np.arange(4), (len(returns), 1)),
            )

        def evaluate_one(params, key, count):
            return EvalInfo(np.zeros(4), np.full(4, 10), np.arange(4))

        return Programs(
            **dict.fromkeys(Programs._fields)
            | Programs._field_defaults
            | {"chunk": chunk, "evaluate": evaluate, "evaluate_one": evaluate_one}
            | {"params": lambda state: state.agent.params}
        )


def follow(config, returns, skipped=None):
    """Run the host loop by a script, and return it, its summary and its records."""
    seen, logger = collector()
    script = Script(config, returns, skipped)
    host = HostLoop(config, script.programs(), script.keys, [logger])
    host.progress.totals = {"rows": 0, "env_steps": 0, "gradient_steps": 0}
    host.progress.train_seconds = 1.0
    host.train(script.state(0), StopRequest())
    return host, host.summary(), seen.records


SCRIPTED = dict(num_seeds=3, eval_every=1, log_every=100, total_rows=432, solve_return=8.0)


def test_a_diverged_learner_is_never_best_or_solved():
    returns = [[1, 5, 2], [2, 9, 1], [3, 9, 1], [2, 9, 1]]
    host, summary, _ = follow(tiny(**SCRIPTED), returns, [[0, 1, 0]] + [[0, 0, 0]] * 3)
    assert (summary["best_learner"], summary["best_eval_return_mean"]) == (0, 3.0)
    assert int(host.best_params) == 30  # learner 0 after chunk 3
    assert summary["last_learner"] == 0
    assert [one["diverged_at_chunk"] for one in summary["learners"]] == [None, 1, None]
    assert [one["seconds_to_solve"] for one in summary["learners"]] == [None] * 3


def test_a_learner_with_a_non_finite_return_does_not_lead():
    returns = [[NAN, 1, 2], [NAN, NAN, NAN], [NAN, 4, 3], [NAN, 1, 1]]
    _, summary, records = follow(tiny(**SCRIPTED), returns)
    leaders = [record["leader"] for kind, record in records if kind == "evaluation"]
    assert leaders[0] == 2
    assert leaders[2:] == [1, 1]
    assert (summary["best_learner"], summary["best_eval_return_mean"]) == (1, 4.0)
    bests = [one["best_eval_return_mean"] for one in summary["learners"]]
    assert bests == [None, 4.0, 3.0]
    means = [record["return_mean"] for kind, record in records if kind == "evaluation"]
    assert (means[0], means[2]) == (1.5, 3.5)


def test_with_guard_skip_a_learner_diverges_when_a_chunk_undoes_every_step():
    returns = [[1, 2, 3]] * 4
    skipped = [[0, 4, 5], [0, 0, 0], [0, 5, 0], [0, 0, 0]]
    _, summary, records = follow(tiny(**SCRIPTED, guard="skip"), returns, skipped)
    assert [one["diverged_at_chunk"] for one in summary["learners"]] == [None, 3, 1]
    events = [record for kind, record in records if kind == "event"]
    assert [event["learner"] for event in events if "learner" in event] == [2, 1]
    # Learner 1 is announced when its first steps are undone, before a whole chunk is.
    (first,) = [event for event in events if "learners" in event]
    assert (first["learners"], first["chunk"], first["skipped"]) == ([1], 1, 4)
    assert "from chunk 1 on: learner 1" in first["message"]
    undone = [one["skipped_gradient_steps"] for one in summary["learners"]]
    assert undone == [0, 9, 5]
    assert summary["skipped_gradient_steps"] == 14
    assert "diverged in chunk 3, 9 gradient steps undone" in learner_table(summary["learners"])


def test_the_run_ends_when_all_learners_have_solved():
    config = tiny(**SCRIPTED, stop_when="solved")
    returns = [[9, 1, 1], [9, 9, 1], [1, 1, 9], [9, 9, 9]]
    host, summary, records = follow(config, returns)
    assert [record["chunk"] for kind, record in records if kind == "metrics"] == [1, 2, 3]
    assert summary["solved"]
    assert summary["learners_solved"] == 3
    seconds = [one["seconds_to_solve"] for one in summary["learners"]]
    assert seconds == sorted(seconds)
    assert summary["seconds_to_solve"] == seconds[-1]
    assert host.ended_by(StopRequest()) == "solved"


def test_the_run_does_not_wait_for_diverged_learners():
    config = tiny(**SCRIPTED, stop_when="solved")
    returns = [[9, 1, 1], [9, 9, 1], [1, 1, 1], [1, 1, 1]]
    _, summary, records = follow(config, returns, [[0, 0, 5], [0, 0, 5], [0, 0, 5], [0, 0, 5]])
    assert [record["chunk"] for kind, record in records if kind == "metrics"] == [1, 2]
    assert (summary["solved"], summary["learners_solved"]) == (False, 2)


@pytest.mark.slow
def test_a_checkpoint_before_the_first_evaluation_resumes(tmp_path):
    config = small(num_seeds=2, population="map", eval_every=300, checkpoint_every=100)
    uninterrupted = run(config, environment=noisy())

    class Killed(BaseException):
        pass

    def kill(kind, record):
        if kind == "metrics" and record["chunk"] == 2:
            raise Killed

    killer = Logger(log=kill, close=lambda: None)
    with pytest.raises(Killed):
        run(config, out=tmp_path / "out", environment=noisy(), loggers=[killer])
    resumed = run(config, out=tmp_path / "out", resume=True, environment=noisy())
    assert_identical(resumed.state, uninterrupted.state)
    assert_identical(resumed.best_params, uninterrupted.best_params)
    assert resumed.summary["learners"] == uninterrupted.summary["learners"]


def test_metrics_of_a_chunk_are_averaged_over_the_finite_learners():
    ones = np.ones(3, np.float32)
    metrics = Metrics(*[ones] * len(Metrics._fields))._replace(
        illegal=(),
        diagnostics=(),
        episodes=np.int32([1, 10, 0]),
        return_sum=np.float32([8, 20, 0]),
        loss=np.float32([1, NAN, 3]),
        extra={"own": np.float32([2, NAN, 4])},
    )
    record = chunk_record(metrics, 2.0)
    # (8 / 1 + 20 / 10) / 2: every learner has the same weight, for any number of episodes.
    assert (record["return_mean"], record["episodes"]) == (5.0, 11)
    assert record["loss"] == 2.0
    assert record["own"] == 3.0
    np.testing.assert_array_equal(record["learners"]["own"], [2.0, NAN, 4.0])
    np.testing.assert_array_equal(record["learners"]["return_mean"], [8.0, 2.0, NAN])


def test_progress_shows_the_range_over_learners_and_the_number_solved(capsys):
    metrics = {
        "rows": 100, "env_steps": 90, "seconds": 1.0, "env_steps_per_second": 1.0,
        "gradient_steps_per_second": 1.0, "loss": 1.0, "epsilon": 0.1, "return_mean": 2.0,
        "learners": {"return_mean": [1.0, 3.0, NAN]},
    }  # fmt: skip
    config = tiny(num_seeds=3)
    assert dict(progress_items(config, metrics))["return"] == "2.00 (1.00 to 3.00)"
    info = EvalInfo(np.array([[1.0, 3.0], [5.0, 7.0]]), np.ones((2, 2)), np.zeros((2, 2)))
    record = {**evaluation_record(info), "rows": 10, "seconds": 1.0, "purpose": "evaluate"}
    line = evaluation_line({**record, "leader": 1, "learners_solved": 1})
    assert "return 4.00 over 2 learners (2.00 to 6.00), each over 2 greedy episodes" in line
    assert "learner 1 leads, 1 solved" in line
    start = {"config": {"env": "Toy-v0", "seed": 0}, "out": None}
    make_progress_logger(config).log("start", start)
    assert capsys.readouterr().out == "Toy-v0, seeds 0 to 2: 3 learners; compiling\n"


def standing(learner, seed, best, **more):
    values = {
        "learner": learner, "seed": seed, "eval_return_mean": best, "best_eval_return_mean": best,
        "seconds_to_solve": None, "diverged_at_chunk": None,
    }  # fmt: skip
    return {**values, **more}


def test_the_table_of_learners_lists_the_best_first_and_the_diverged_last():
    learners = [
        standing(0, 0, 10.0, gamma=0.9),
        standing(1, 0, 99.0, gamma=0.5, diverged_at_chunk=2),
        standing(2, 0, 30.0, gamma=0.99, seconds_to_solve=1.25),
        standing(3, 0, None, gamma=0.8),
    ]
    lines = learner_table(learners).splitlines()
    assert lines[0].split()[:3] == ["learner", "seed", "gamma"]
    assert [line.split()[0] for line in lines[1:]] == ["2", "0", "3", "1"]
    assert lines[1].split() == ["2", "0", "0.99", "30.00", "30.00", "1.25", "s"]
    assert lines[4].endswith("diverged in chunk 2")
    assert len({len(line) for line in lines}) == 1
    assert learner_table(learners, most=1).splitlines()[-1] == "and 3 more, in the summary"
    assert population_tables(learners) == learner_table(learners)


def test_the_table_of_a_sweep_averages_over_seeds():
    learners = [
        standing(0, 0, 10.0, gamma=0.9),
        standing(1, 1, 20.0, gamma=0.9, seconds_to_solve=1.0),
        standing(2, 0, 30.0, gamma=0.99),
        standing(3, 1, None, gamma=0.99),
    ]
    sweep, each = population_tables(learners).split("\n\n")
    assert [line.split() for line in sweep.splitlines()[1:]] == [
        ["0.99", "2", "30.00", "30.00", "0", "0"],
        ["0.9", "2", "15.00", "15.00", "1", "0"],
    ]
    assert each == learner_table(learners)


class Panel:
    """Axes that record what is drawn."""

    def __init__(self):
        self.lines, self.bars = [], []

    def plot(self, xs, ys, **look):
        self.lines.append((xs, ys, look))

    def errorbar(self, xs, ys, **look):
        self.bars.append((xs, ys, look))


def test_curves_have_one_line_for_each_learner_over_its_own_steps(tmp_path):
    records = [
        {"purpose": "evaluate", "env_steps": 200, "seconds": 1.0, "return_mean": 3.0,
         "return_std": 1.0, "episodes": 4, "learners": [2.0, 4.0]},
        {"purpose": "evaluate", "env_steps": 400, "seconds": 2.0, "return_mean": 5.0,
         "return_std": 1.0, "episodes": 4, "learners": [5.0, None]},
    ]  # fmt: skip
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "evaluations.jsonl").write_text(text)
    (tmp_path / "metrics.jsonl").write_text(text)
    panel = Panel()
    curves._draw(panel, tmp_path, tiny(num_seeds=2), "env_steps", "", "C0")
    training, *each = panel.lines
    assert training[:2] == ([100, 200], [3.0, 5.0])
    assert [xs for xs, _, _ in each] == [[100, 200]] * 2
    np.testing.assert_array_equal([ys for _, ys, _ in each], [[2.0, 5.0], [4.0, NAN]])
    assert [bars[:2] for bars in panel.bars] == [([100, 200], [3.0, 5.0])]
    # Over time all learners share one axis.
    panel = Panel()
    curves._draw(panel, tmp_path, tiny(num_seeds=2), "seconds", "", "C0")
    assert panel.lines[0][0] == [1.0, 2.0]


@pytest.mark.slow
def test_a_population_from_the_command_line_to_its_evaluation_and_curves(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPROC", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    argv = ["--num-seeds", "2", "--sweep", "learning-rate=1e-3,3e-3", "gamma=0.9"]
    argv += [*SMALL, "--total-rows", "600", "--out", "there"]
    assert run_command.main([*argv, "--explain"]) == 0
    output = capsys.readouterr().out
    assert "population of 4" in output
    assert "learners (P/D)        4" in output
    assert run_command.main(argv) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "(0 of 4 learners)" in captured.out
    assert "learning_rate  gamma  seeds  best return" in captured.out
    summary = json.loads(Path("there/summary.json").read_text())
    assert summary["mapping"] == "population of 4"
    assert len(summary["learners"]) == 4
    assert evaluate.main(["there", "--episodes", "3"]) == 0
    best = summary["learners"][summary["best_learner"]]
    output = capsys.readouterr().out
    assert f"parameters of learner {best['learner']}, seed {best['seed']}, learning_rate" in output
    assert plot.main(["there", "there", "--out", "curves.png"]) == 0
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    for which in ("best", "last"):
        assert load_policy("there", which)(np.zeros(4, np.float32)) in (0, 1)


@pytest.mark.slow
def test_a_loaded_policy_is_of_one_learner_on_one_device(swept, tmp_path):
    shutil.copytree(swept.out, tmp_path / "out")
    mapped = {"devices": 4, "model_devices": 2, "average_every": 1, "average_moments": True}
    mapped |= {"num_seeds": 1, "sweep": (), "population": "auto"}
    config = replace(read_config(swept.out), **mapped)
    write_json(tmp_path / "out" / "config.json", to_dict(config))
    for directory in (swept.out, tmp_path / "out"):
        found, _, params = load_run(directory, environment=noisy())
        assert (found.devices, found.model_devices, found.learners) == (1, 1, 1)
        assert found.hidden_sizes == SWEPT.hidden_sizes
        assert_identical(params, swept.together.best_params)
