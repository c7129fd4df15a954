"""Choice of ``reset='auto'``: from the traced programs, stored by the run, and kept on resume."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks.resets import corridor
from jaxdqn import envs
from jaxdqn.backend_choices import tracing_for
from jaxdqn.cli import explain
from jaxdqn.config.config import Config, replace
from jaxdqn.config.presets import PRESETS
from jaxdqn.config.protocols import PROTOCOLS
from jaxdqn.envs import make_environment
from jaxdqn.monitoring import report, report_setup
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.run import program_cache
from jaxdqn.run.runner import run
from jaxdqn.storage.directory import read_config
from jaxdqn.training.resets import choose_reset, resolve_reset
from jaxdqn.training.trainer import make_trainer
from jaxdqn.training.vector_trainer import make_vector_trainer
from tests.storage.runs import CONFIG, assert_same_run, interrupted
from tests.toys import DEVICE_PRESETS, noisy, quick_runs, tiny
from tests.training.test_vector_trainer import on_host

MINATAR = ("Asterix", "Breakout", "Freeway", "SpaceInvaders")


def expensive(products=100):
    """Return the environment of the benchmark whose reset computes products of matrices."""
    return corridor(products)


def chosen(environment, **fields):
    return choose_reset(tiny(**fields), environment).reset


def test_the_expensive_reset_of_the_benchmark_is_pooled_and_the_cheap_one_is_not():
    assert chosen(expensive()) == "pooled"
    assert chosen(expensive(0)) == "every-step"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("game", MINATAR)
def test_games_of_minatar_reset_at_every_step(game, protocol):
    config = tiny(env=f"{game}-MinAtar", **PROTOCOLS[protocol])
    assert choose_reset(config, envs.configured_environment(config)).reset == "every-step"


@pytest.mark.parametrize("name", sorted({config.env for config in DEVICE_PRESETS.values()}))
def test_the_environment_of_every_preset_resets_at_every_step(name):
    config = next(each for each in PRESETS.values() if each.env == name)
    choice = choose_reset(config, envs.configured_environment(config))
    assert choice.reset == "every-step", choice.reason


@pytest.mark.slow
def test_every_environment_of_gymnax_resets_at_every_step():
    for name in envs.names():
        if name == "MNISTBandit-bsuite":
            continue  # downloads its data
        choice = choose_reset(Config(), envs.make(name))
        assert choice.reset == "every-step", (name, choice.reason)


def test_a_reset_as_cheap_as_the_step_beside_it_is_not_pooled():
    """The cost is relative: an expensive step makes the same reset cheap."""

    def products(key):
        matrix = jax.random.normal(key, (32, 32))
        return jax.lax.fori_loop(0, 10, lambda _, found: jnp.tanh(found @ matrix), matrix)[0, 0]

    def environment(costly_step):
        def step(key, state, action):
            return products(key) if costly_step else state, jnp.zeros(2), 1.0, False

        return make_environment(
            lambda key: (products(key), jnp.zeros(2)), step, name="costly", num_actions=2
        )

    assert chosen(environment(costly_step=False)) == "pooled"
    assert chosen(environment(costly_step=True)) == "every-step"


def test_explicit_values_are_kept():
    for reset in ("every-step", "pooled"):
        assert chosen(expensive(), reset=reset) == reset
        config = tiny(reset=reset)
        assert resolve_reset(config, expensive(0)) is config
        assert make_trainer(config, environment=expensive(0)).reset == reset


def test_an_environment_that_cannot_be_separated_resets_at_every_step():
    environment = expensive()
    closed = environment._replace(step=lambda *args: environment.step(*args))
    assert chosen(closed) == "every-step"


def test_learners_that_are_vmapped_reset_at_every_step():
    assert chosen(expensive(), num_seeds=2, population="vmap") == "every-step"
    assert chosen(expensive(), num_seeds=2, population="map") == "pooled"
    for population in ("auto", "map"):
        trainer = make_mapped_trainer(
            tiny(num_seeds=2, population=population), environment=expensive()
        )
        assert trainer.reset == "pooled"
    assert chosen(expensive(), num_seeds=2) == "pooled"
    with tracing_for("gpu"):
        assert chosen(expensive(), num_seeds=2) == "every-step"


def test_an_environment_on_the_host_resets_itself():
    assert chosen(on_host()) == "every-step"
    trainer = make_vector_trainer(tiny(), on_host())
    assert (trainer.reset, trainer.config.reset) == ("every-step", "every-step")


def test_the_program_of_auto_is_that_of_the_chosen_value():
    def program(environment, **fields):
        trainer = make_trainer(tiny(**fields), environment=environment)
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        return jax.jit(trainer.step).lower(state).as_text()

    costly, cheap = expensive(), expensive(0)
    assert program(costly) == program(costly, reset="pooled")
    assert program(cheap) == program(cheap, reset="every-step")
    assert program(cheap) != program(cheap, reset="pooled")


@pytest.fixture(scope="module")
def pooled_run(tmp_path_factory):
    """Return an interrupted run whose resets ``auto`` has pooled, and its environment."""
    out, environment = tmp_path_factory.mktemp("runs") / "pooled", expensive(20)
    with quick_runs():
        yield out, environment, interrupted(out, environment=environment)


def test_a_run_stores_what_auto_chose_and_resumes_with_it(pooled_run, tmp_path):
    out, environment, result = pooled_run
    assert result.summary["interrupted"]
    assert read_config(out).reset == "pooled"
    with quick_runs():
        parts = run(CONFIG, out=out, environment=environment, resume=True)
        whole = run(CONFIG, out=tmp_path / "whole", environment=environment)
        explicit = replace(CONFIG, reset="pooled")
        again = run(explicit, out=tmp_path / "explicit", environment=environment)
    assert_same_run(tmp_path / "whole", out, whole, parts)
    assert_same_run(tmp_path / "whole", tmp_path / "explicit", whole, again)
    assert read_config(out).reset == "pooled"
    with pytest.raises(ValueError, match=r"reset='every-step': must be 'pooled', as in the run"):
        run(replace(CONFIG, reset="every-step"), out=out, environment=environment, resume=True)


@pytest.mark.parametrize("stored", ["every-step", pytest.param(None, marks=pytest.mark.slow)])
def test_an_older_run_keeps_its_resets(stored, tmp_path):
    """Older runs have stored every-step, and runs before that had no such option."""
    environment = expensive(20)
    with quick_runs():
        before = replace(CONFIG, reset="every-step")
        interrupted(tmp_path / "run", before, environment=environment)
        whole = run(before, out=tmp_path / "whole", environment=environment)
        file = tmp_path / "run" / "config.json"
        values = json.loads(file.read_text())
        assert values.pop("reset") == "every-step"
        if stored is None:
            file.write_text(json.dumps(values))
        parts = run(CONFIG, out=tmp_path / "run", environment=environment, resume=True)
    assert read_config(tmp_path / "run").reset == "every-step"
    assert_same_run(tmp_path / "whole", tmp_path / "run", whole, parts)


def test_auto_shares_its_programs_with_the_value_that_it_chose():
    program_cache.clear()
    environment = noisy()

    def static(**fields):
        config = tiny(**fields)
        return program_cache.static_run(config, learner_keys(config), {"environment": environment})

    assert static() is static(reset="every-step")
    assert static() is not static(reset="pooled")
    program_cache.clear()


def test_explain_shows_the_choice_and_its_reason(capsys):
    assert explain.main(["cartpole"]) == 0
    assert "resets                every-step: a reset costs about " in capsys.readouterr().out
    text = explain.explain(tiny(), "own", {"environment": expensive()})
    assert "resets                pooled, 1 in bulk: a reset costs about " in text
    text = explain.explain(tiny(reset="every-step"), "own", {"environment": expensive()})
    assert "resets                every-step: as configured" in text


def test_a_report_does_not_list_the_choice_as_a_changed_option(pooled_run):
    out, *_ = pooled_run
    html = report_setup.configuration([report.read_run(out)])
    changed, _, every = html.partition("All options")
    assert "<td>reset</td>" not in changed
    assert "<td>reset</td><td>pooled</td>" in every
