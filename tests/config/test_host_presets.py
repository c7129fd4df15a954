"""Presets of environments on the host."""

import pytest

from jaxdqn.config.algorithm_presets import ALGORITHMS
from jaxdqn.config.presets import preset


def test_atari_has_the_schedule_of_dopamine_in_gradient_steps():
    config = preset("atari")
    assert (config.env, config.env_args) == ("ale:pong", ())
    # One gradient step of 32 rows for four rows, and 8,000 rows between target networks.
    assert config.gradient_steps_per_iteration / config.rows_per_iteration == 1 / 4
    assert config.target_period * 4 == 8_000
    assert config.total_rows * 4 == 200_000_000  # frames


def test_atari_classic_differs_by_its_protocol_and_optimiser():
    config, optimiser = preset("atari-classic"), ALGORITHMS["dqn-2015"]
    assert config.env_args == ("protocol=classic",)
    for name, value in optimiser.items():
        assert getattr(config, name) == value, name
    same = ("frame_stack", "clip_rewards", "replay_capacity", "gamma", "num_envs", "total_rows")
    for name in same:
        assert getattr(config, name) == getattr(preset("atari"), name), name


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_the_observations_and_rewards_of_atari(name):
    config = preset(name, env="ale:breakout")
    assert config.clip_rewards
    assert config.frame_stack == (1 if name == "recurrent" else 4)
    assert not preset(name).clip_rewards


def test_pqn_has_the_published_settings_of_atari():
    config = preset("pqn", env="ale:breakout")
    published = {
        "algorithm": "pqn",
        "num_envs": 128,
        "rollout_length": 32,
        "epochs": 2,
        "minibatches": 32,
        "trace_decay": 0.65,
        "gamma": 0.99,
        "optimizer": "radam",
        "learning_rate": 2.5e-4,
        "learning_rate_schedule": "constant",
        "clip_norm": 10.0,
        "layer_norm": True,
        "loss": "squared",
        "epsilon_start": 1.0,
        "epsilon_end": 0.001,
        "epsilon_schedule": "linear",
        "eval_epsilon": 0.0,
        "total_rows": 10_000_000,
    }
    assert {name: getattr(config, name) for name in published} == published
    assert config.epsilon_decay_rows == 0.1 * config.total_rows
    # MinAtar's and CartPole's learning rates fall, as published.
    for env in ("Breakout-MinAtar", "CartPole-v1"):
        assert preset("pqn", env=env).learning_rate_schedule == "linear"
