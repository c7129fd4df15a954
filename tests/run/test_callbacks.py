"""Callbacks: their arguments, the values that they may change, and runs that they end."""

import importlib.util

import jax
import numpy as np
import pytest

from jaxdqn import EndRun
from jaxdqn.run.callbacks import as_callbacks
from jaxdqn.run.runner import run
from jaxdqn.storage.jsonl import read_lines
from tests.run.test_run import collector, small
from tests.toys import cycle, noisy, quick_runs, shared_programs
from tests.training.test_vector_trainer import on_host


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    with shared_programs(tmp_path_factory.mktemp("xla")), quick_runs():
        yield


class Recording:
    """Keep the records, and the parameters of each evaluation and of the end."""

    def __init__(self):
        self.calls, self.params = [], []

    def on_chunk(self, context):
        self.calls.append(("chunk", context.record))

    def on_evaluation(self, context):
        self.calls.append(("evaluation", context.record))
        self.params.append(context.params)

    def on_checkpoint(self, context):
        self.calls.append(("checkpoint", context.record))

    def on_end(self, context):
        self.calls.append(("end", context.record))
        self.params.append(context.params)


class EndAfter:
    """End the run at call number ``count`` of a method."""

    def __init__(self, method, count):
        setattr(self, method, self._call)
        self.left = count

    def _call(self, context):
        self.left -= 1
        if self.left == 0:
            raise EndRun("enough")


def test_every_method_is_called_with_the_record_of_the_loggers(tmp_path):
    seen, logger = collector()
    watch = Recording()
    config = small(checkpoint_every=200)
    result = run(config, out=tmp_path / "a", environment=noisy(), loggers=[logger], callbacks=watch)

    def of(kind, select=lambda record: True):
        return [record for name, record in seen.records if name == kind and select(record)]

    def called(kind):
        return [record for name, record in watch.calls if name == kind]

    assert called("chunk") == of("metrics")
    assert called("evaluation") == of("evaluation", lambda record: record["purpose"] == "evaluate")
    assert called("checkpoint") == of("event", lambda record: record["event"] == "checkpoint")
    assert called("end") == of("summary") == [result.summary]
    assert min(len(called(kind)) for kind in ("chunk", "evaluation", "checkpoint")) > 1
    # Copies: the chunks after the first evaluation overwrite the buffers of its parameters.
    first, last = jax.tree.leaves(watch.params[0]), jax.tree.leaves(watch.params[-1])
    assert any(np.any(one != other) for one, other in zip(first, last, strict=True))
    for one, other in zip(last, jax.tree.leaves(result.state.agent.params), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "method",
    ["on_chunk", *(pytest.param(name, marks=pytest.mark.slow) for name in
                   ("on_evaluation", "on_checkpoint"))],
)  # fmt: skip
def test_a_callback_ends_the_run_as_its_budget_does(tmp_path, method, capsys):
    config = small(total_rows=2_000, checkpoint_every=200)
    out = tmp_path / "run"
    result = run(config, out=out, environment=noisy(), callbacks=[EndAfter(method, 1)])
    summary = result.summary
    assert summary["rows"] < 1_000
    assert summary["ended_by"] == "callback"
    assert not summary["interrupted"]
    assert summary["rows"] == read_lines(out / "evaluations.jsonl")[-1]["rows"]
    messages = [event.get("message") for event in read_lines(out / "events.jsonl")]
    assert "a callback ended the run: enough" in messages
    assert not capsys.readouterr().err
    resumed = run(config, out=out, environment=noisy(), resume=True).summary
    assert resumed["ended_by"] == "budget"
    assert resumed["rows"] >= 2_000


def test_a_callback_that_raises_is_dropped_and_the_others_are_called(capsys):
    class Broken:
        calls = 0

        def on_chunk(self, context):
            Broken.calls += 1
            raise KeyError("losss")

    seen, logger = collector()
    watch = Recording()
    run(small(), environment=noisy(), loggers=[logger], callbacks=[Broken(), watch])
    assert Broken.calls == 1
    assert sum(name == "chunk" for name, _ in watch.calls) > 1
    (event,) = [record for kind, record in seen.records if record.get("event")]
    assert event["event"] == "callback dropped"
    assert event["reason"] == "Broken.on_chunk failed: KeyError: 'losss'"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {event['reason']}; the callback is dropped")


@pytest.mark.slow
def test_a_callback_of_a_population_sees_and_sets_each_learner():
    seen = []

    class Halve:
        def on_chunk(self, context):
            rates = context.hyper["learning_rate"]
            seen.append((rates.tolist(), jax.tree.leaves(context.params)[0].shape[0]))
            context.set_hyper(learning_rate=rates / 2, gamma=0.5)

    config = small(num_seeds=2, learning_rate=0.5)
    state = run(config, environment=noisy(), callbacks=Halve()).state
    assert seen[0] == ([0.5, 0.5], 2)
    assert seen[1] == ([0.25, 0.25], 2)
    assert state.hyper.gamma.tolist() == [0.5, 0.5]


@pytest.mark.slow
def test_a_callback_can_stop_learning_in_a_run_on_the_host():
    """With a learning rate of 0 the parameters stay what they were."""
    params = []

    class Freeze:
        def on_chunk(self, context):
            params.append(jax.tree.leaves(context.params)[0])
            context.set_hyper(learning_rate=0.0)

    config = small(hidden_sizes=(8,))
    run(config, environment=on_host(cycle([1.0, 2.0], limit=4)), callbacks=Freeze())
    assert len(params) > 2
    # The overlapping gradient step of the first chunk has the old rate; later steps do not.
    np.testing.assert_array_equal(params[-2], params[-1])


def test_invalid_values_are_rejected_in_one_line(capsys):
    errors = []

    class Wrong:
        def on_chunk(self, context):
            for values in ({"learning_rat": 1.0}, {"clip_norm": 1.0}, {"gamma": np.nan}):
                with pytest.raises(ValueError) as error:  # noqa: PT011
                    context.set_hyper(**values)
                errors.append(str(error.value))
            self.context = context

        def on_end(self, context):
            with pytest.raises(ValueError, match="must be called in on_chunk or on_evaluation"):
                context.set_hyper(gamma=0.5)
            with pytest.raises(ValueError, match="must be read before"):
                _ = self.context.params

    run(small(), environment=noisy(), callbacks=[Wrong()])
    assert not capsys.readouterr().err  # nothing else was raised
    assert "learning_rat=1.0: must be a known hyper-parameter; nearest: learning_rate" in errors[0]
    assert "clip_norm=1.0: must be set in the configuration" in errors[1]
    assert "gamma=nan: must be a finite number" in errors[2]


@pytest.mark.parametrize("wrong", [object(), Recording, lambda context: None])
def test_an_object_without_a_method_is_rejected(wrong):
    with pytest.raises(ValueError, match=r"^callbacks: must be objects with methods named"):
        run(small(), environment=noisy(), callbacks=wrong)


def test_a_misspelt_method_is_named():
    class Typo:
        def on_eval(self, context):
            pass

    with pytest.raises(ValueError, match=r"with on_eval$"):
        as_callbacks(Typo())


@pytest.mark.skipif(not importlib.util.find_spec("optuna"), reason="needs optuna")
@pytest.mark.filterwarnings("ignore")
def test_optuna_prunes_a_run():
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    class Prune:
        def __init__(self, trial):
            self.trial = trial

        def on_evaluation(self, context):
            self.trial.report(context.record["return_mean"], context.record["env_steps"])
            if self.trial.should_prune():
                raise EndRun("pruned")

    rows = []

    def objective(trial):
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        config = small(total_rows=1_000, learning_rate=rate)
        summary = run(config, environment=noisy(), callbacks=Prune(trial)).summary
        rows.append(summary["rows"])
        if summary["ended_by"] == "callback":
            raise optuna.TrialPruned
        return summary["best_eval_return_mean"]

    # Pruned as soon as a trial is below a bound that no return reaches.
    pruner = optuna.pruners.ThresholdPruner(lower=1e6, n_warmup_steps=300)
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "PRUNED"]
    assert all(300 < count < 1_000 for count in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"devices": 2}, {"devices": 2, "mapping": "pmap"}, {"devices": 2, "num_seeds": 4}]
)
def test_a_callback_sets_hyper_parameters_under_every_mapping(options):
    seen = []

    class Set:
        def on_chunk(self, context):
            seen.append(context.hyper["learning_rate"])
            assert (
                jax.tree.leaves(context.params)[0].shape[:1] == (4,) or "num_seeds" not in options
            )
            learners = options.get("num_seeds", 1)
            context.set_hyper(learning_rate=np.arange(1, learners + 1) / 8)

    state = run(small(**options), environment=noisy(), callbacks=Set()).state
    values = [index / 8 for index in range(1, options.get("num_seeds", 1) + 1)]
    assert np.ravel(seen[1]).tolist() == values
    assert sorted(set(np.ravel(state.hyper.learning_rate).tolist())) == values


PROCESSES = """
import sys
import jax
from jaxdqn.parallel import multihost
jax.config.update("jax_num_cpu_devices", 1)
multihost.join(sys.argv[1], 2, int(sys.argv[2]))
import jaxdqn
from jaxdqn.run import run


class Halve:
    calls = 0

    def on_chunk(self, context):
        Halve.calls += 1
        context.set_hyper(learning_rate=context.hyper["learning_rate"] / 2)
        if context.record["chunk"] == 3:
            raise jaxdqn.EndRun("enough")


config = jaxdqn.preset("cartpole", devices=2, total_rows=20_000, log_every=1_000, eval_episodes=10,
                       learning_rate=0.5, stop_when="never")
result = run(config, callbacks=Halve())
rate = multihost.local_part(result.state.hyper.learning_rate)
print("result", Halve.calls, result.summary["ended_by"], float(rate.ravel()[0]))
"""


@pytest.mark.slow
def test_processes_follow_the_callbacks_of_the_first(start, port):
    address = f"127.0.0.1:{port}"
    started = [start(address, index, program=("-c", PROCESSES)) for index in range(2)]
    ended = [process.communicate(timeout=300) for process in started]
    lines = [next(line for line in out.splitlines() if line.startswith("result"))
             for out, _ in ended]  # fmt: skip
    assert lines == ["result 3 callback 0.0625", "result 0 callback 0.0625"]
