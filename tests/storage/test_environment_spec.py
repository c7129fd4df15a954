"""A run keeps the properties of its environment, and other environments are rejected by name."""

import json
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import pytest
from flax import linen

import jaxdqn
from jaxdqn.cli import evaluate, replay
from jaxdqn.config.config import replace
from jaxdqn.envs import make
from jaxdqn.run.runner import run
from jaxdqn.storage.directory import create
from jaxdqn.storage.environment_spec import with_spec
from jaxdqn.storage.jsonl import write_json
from jaxdqn.storage.params import save_params
from jaxdqn.storage.parts import resolve_parts
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from tests.toys import tiny

CONFIG = tiny(env="CartPole-v1", eval_episodes=2, eval_every=0, total_rows=200, log_every=200)


WITH_ARGUMENT = replace(CONFIG, env_args=("max_steps_in_episode=5",))


def limited(steps):
    return make("CartPole-v1", params={"max_steps_in_episode": steps})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder of two run directories: a custom environment, and one with an argument.

    They hold the files of a run, with the initial parameters.
    """
    path = tmp_path_factory.mktemp("runs")
    cases = {"own": (CONFIG, limited(5)), "named": (WITH_ARGUMENT, None)}
    for name, (config, environment) in cases.items():
        trainer = make_trainer(config, environment=environment)
        spec = trainer.environment.spec
        record = with_spec(resolve_parts({"environment": environment}).record, spec)
        with ExitStack() as stack:
            create(path / name, config, stack, record)
        obs = jnp.zeros((1, *spec.obs_shape), spec.obs_dtype)
        params = trainer.agent.init(jax.random.key(0), obs, hyper=hyper_from(config)).params
        save_params(path / name / "best", jax.device_get(params))
        write_json(path / name / "summary.json", {})
    return path


def test_the_directory_records_the_spec_and_which_parts_were_own(runs):
    own, named = (json.loads((runs / name / "parts.json").read_text()) for name in ("own", "named"))
    assert own["spec"]["max_episode_steps"] == named["spec"]["max_episode_steps"] == 5
    assert own["spec"]["arguments"] == named["spec"]["arguments"] == ["max_steps_in_episode=5"]
    assert "environment" in own
    assert "environment" not in named


def test_a_named_environment_keeps_its_arguments(runs, capsys):
    assert evaluate.main([str(runs / "named"), "--episodes", "2"]) == 0
    out = capsys.readouterr().out
    assert "CartPole-v1 (max_steps_in_episode=5), best parameters: return 5.00" in out


CHANGED = (
    r"environment='CartPole-v1': must be the environment of the run in .*own; max_episode_steps "
    r"was 5, is 500; arguments was \['max_steps_in_episode=5'\], is \[\]$"
)


def test_another_environment_is_rejected_by_name(runs):
    with pytest.raises(ValueError, match=CHANGED):
        jaxdqn.load_policy(runs / "own", environment=make("CartPole-v1"))
    with pytest.raises(ValueError, match=CHANGED):
        run(CONFIG, out=runs / "own", resume=True, environment=make("CartPole-v1"))
    assert callable(jaxdqn.load_policy(runs / "own", environment=limited(5)))


def test_an_own_environment_that_is_not_passed_again_is_named(runs):
    with pytest.raises(ValueError, match="environment=None: must be given"):
        run(CONFIG, out=runs / "own", resume=True)


def test_other_commands_reject_it_too(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    (runs / "whole.py").write_text(
        "from jaxdqn.envs import make\n\ndef whole():\n    return make('CartPole-v1')\n"
    )
    for command, more in ((evaluate, []), (replay, ["--to", "rows.npz"])):
        assert command.main(["own", *more, "--environment", "whole.py:whole"]) == 2
        assert "max_episode_steps was 5, is 500" in capsys.readouterr().err


def test_other_arguments_are_rejected_on_resume(runs):
    for env_args in ((), ("max_steps_in_episode=6",)):
        with pytest.raises(ValueError, match=r"env_args=.*: must be \['max_steps_in_episode=5'\]"):
            run(replace(CONFIG, env_args=env_args), out=runs / "named", resume=True)


class Linear(linen.Module):
    @linen.compact
    def __call__(self, obs):
        return linen.Dense(2)(obs)


def test_a_part_that_the_run_did_not_have_is_rejected(runs):
    with pytest.raises(ValueError, match=r"network: must be left out: the run in .*named did not"):
        run(WITH_ARGUMENT, out=runs / "named", resume=True, network=Linear())
    with pytest.raises(ValueError, match="network: must be left out"):
        jaxdqn.load_policy(runs / "named", network=Linear())
    with pytest.raises(ValueError, match="environment: must be left out"):
        jaxdqn.load_policy(runs / "named", environment=limited(5))
