"""Presets on MinAtar games have sticky actions and the full action set; gymnax's form by name."""

import pytest

from jaxdqn.cli.run import read_flags
from jaxdqn.config.algorithm_presets import ALGORITHMS
from jaxdqn.config.config import Config
from jaxdqn.config.presets import preset
from jaxdqn.config.task_presets import TASKS

GAME = "Asterix-MinAtar"


def form(config):
    return config.sticky_actions, config.full_action_set


@pytest.mark.parametrize("name", [*ALGORITHMS, "breakout", "cartpole"])
def test_every_preset_has_the_published_form_of_a_game_unless_gymnax_is_named(name):
    assert form(preset(name, env=GAME)) == (0.1, True)
    assert form(preset(name, env=GAME, protocol="minatar")) == (0.1, True)
    assert form(preset(name, env=GAME, protocol="gymnax")) == (0.0, False)
    assert form(preset(name, env=GAME, sticky_actions=0.25)) == (0.25, True)


@pytest.mark.parametrize("name", ["dqn", "pqn", "breakout", "acrobot"])
def test_other_environments_have_neither(name):
    assert form(preset(name, env="CartPole-v1")) == (0.0, False)
    assert form(Config(env=GAME)) == (0.0, False)


def test_a_protocol_is_one_of_two_and_of_a_game():
    with pytest.raises(ValueError, match=r"protocol='gymnas': must be .*gymnax"):
        preset("dqn", env=GAME, protocol="gymnas")
    with pytest.raises(ValueError, match="protocol='gymnax': must be left out with env='CartPole"):
        preset("dqn", protocol="gymnax")


def test_the_flag_chooses_the_protocol_and_other_flags_prevail():
    game = ["--env", GAME]
    assert form(read_flags(["dqn", *game])[1]) == (0.1, True)
    assert form(read_flags(game)[1]) == (0.1, True)
    assert form(read_flags(["breakout"])[1]) == (0.1, True)
    assert form(read_flags(["breakout", "--protocol", "gymnax"])[1]) == (0.0, False)
    flags = read_flags(["pqn", *game, "--protocol", "gymnax", "--sticky-actions", "0.2"])[1]
    assert form(flags) == (0.2, False)
    assert form(read_flags(["breakout", "--env", "CartPole-v1"])[1]) == (0.0, False)
    assert form(read_flags(["breakout"], own_environment=True)[1]) == (0.0, False)


@pytest.mark.parametrize(
    ("argv", "own"),
    [(["--from", "config.json"], False), (["--resume", "--out", "x"], False), (["breakout"], True)],
)
def test_a_protocol_needs_a_preset_and_a_registered_environment(argv, own):
    with pytest.raises(ValueError, match="protocol='gymnax': must come with a preset"):
        read_flags([*argv, "--protocol", "gymnax"], own_environment=own)


def test_the_task_of_breakout_has_the_published_form():
    assert form(TASKS["breakout"]) == (0.1, True)
