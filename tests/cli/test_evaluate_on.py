"""``jaxdqn evaluate --on``, ``--json`` and drawing in environments on the host."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from jaxdqn import envs
from jaxdqn.cli import evaluate
from jaxdqn.config.config import Config, to_dict
from jaxdqn.config.presets import preset
from jaxdqn.envs.vector import host_environment
from jaxdqn.storage.jsonl import write_json
from tests.training.test_distinct_episodes import constant_agent


@pytest.fixture
def evaluated(tmp_path, monkeypatch, capsys):
    """Return a function that evaluates the policy of action 1, and returns its output lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "keep_compiled_programs", lambda: None)
    (tmp_path / "run").mkdir()

    def run(config, environment, *flags):
        write_json(tmp_path / "run" / "config.json", to_dict(config))
        trainer = SimpleNamespace(agent=constant_agent(), environment=environment)
        monkeypatch.setattr(
            "jaxdqn.export.policy.load_run", lambda *_, **__: (config, trainer, None)
        )
        code = evaluate.main(["run", *flags])
        captured = capsys.readouterr()
        return code, (captured.out or captured.err).splitlines()

    return run


def breakout():
    return preset("dqn", env="Breakout-MinAtar", protocol="gymnax"), envs.make("Breakout-MinAtar")


def test_a_policy_of_gymnax_is_judged_on_the_published_game_and_drawn_there(evaluated):
    pytest.importorskip("minatar")
    name = "gymnasium:MinAtar/Breakout-v1"
    code, lines = evaluated(
        *breakout(), "--on", name, "--env-arg", "max_episode_steps=40", "--episodes", "3",
        "--epsilon", "0.2", "--json", "result.json", "--gif", "film.gif",
    )  # fmt: skip
    assert code == 0
    assert lines[0].startswith(
        f"{name} (difficulty_ramping=True, max_episode_steps=40, sticky_action_prob=0.1), episodes "
        "of at most 40 steps, policy trained on Breakout-MinAtar, best parameters: return "
    )
    record = json.loads(Path("result.json").read_text())
    assert (record["env"], record["trained_on"]) == (name, "Breakout-MinAtar")
    assert "sticky_action_prob=0.1" in record["arguments"]
    assert (record["episodes"], record["epsilon"], record["max_episode_steps"]) == (3, 0.2, 40)
    with Image.open("film.gif") as gif:
        assert 5 < gif.n_frames <= 41
        assert gif.size == (400, 276 + 24)


def test_an_environment_of_another_shape_is_one_line(evaluated):
    code, lines = evaluated(*breakout(), "--on", "gymnasium:CartPole-v1")
    assert code == 2
    assert len(lines) == 1
    assert "bool[10, 10, 4] and 3 actions in 'Breakout-MinAtar', not float32[4]" in lines[0]


def test_on_the_device_sticky_actions_and_the_action_set_are_those_of_the_run():
    config = preset("dqn", env="Breakout-MinAtar")
    made, sticky = envs.environment_of_name(config, "Breakout-MinAtar", ["max_steps_in_episode=30"])
    assert (made.spec.num_actions, made.spec.max_episode_steps, sticky) == (6, 30, 0.1)
    made, sticky = envs.environment_of_name(config, "Catch-bsuite")
    assert (made.spec.name, sticky) == ("Catch-bsuite", 0.1)


def test_arguments_of_no_other_environment_are_rejected(evaluated):
    code, lines = evaluated(*breakout(), "--env-arg", "max_episode_steps=3")
    assert code == 2
    assert lines == ["error: env_args=['max_episode_steps=3']: must come with on; without it the "
                     "arguments are those of the run"]  # fmt: skip
    code, lines = evaluated(*breakout(), "--json", "none/result.json")
    assert lines == ["error: json='none/result.json': must be in a directory that exists"]


def test_an_evaluation_on_the_host_starts_at_most_the_environments_that_it_allows(evaluated):
    pytest.importorskip("pygame")
    started = []
    cartpole = host_environment("gymnasium:CartPole-v1", {})

    def make(num_envs):
        started.append(num_envs)
        return cartpole.make(num_envs)

    config = Config(env="gymnasium:CartPole-v1")
    limited = cartpole._replace(make=make, most_eval_envs=2)
    code, lines = evaluated(config, limited, "--episodes", "5", "--video", "film.gif")
    assert code == 0
    assert "of 5 greedy episodes" in lines[0]
    assert started == [2]
    with Image.open("film.gif") as gif:
        assert gif.n_frames > 5
        assert gif.size == (600, 424)


def test_an_environment_on_the_host_without_frames_is_one_line(evaluated):
    blind = host_environment("gymnasium:CartPole-v1", {})._replace(make_drawable=None)
    config = Config(env="gymnasium:CartPole-v1")
    code, lines = evaluated(config, blind, "--video", "film.gif")
    assert code == 2
    assert len(lines) == 1
    assert "must have frames to be drawn" in lines[0]
