"""Presets against the settings that their authors published."""

import pytest

from jaxdqn.config.presets import preset

CLARK_2024 = {
    "num_envs": 64, "batch_size": 256, "gamma": 0.997, "learning_rate": 1e-4, "n_step": 3,
    "target_period": 500, "priority_exponent": 0.2, "importance_exponent": 0.45, "clip_norm": 10,
    "quantiles": 8, "entropy_temperature": 0.03, "munchausen_scale": 0.9, "munchausen_clip": -1,
    "noisy_sigma": 0.5, "replay_capacity": 1_048_576, "warmup_rows": 200_000, "torso_width": 2,
    "pool_size": 6, "dense_size": 512, "spectral_norm": True, "dueling": True, "noisy": True,
    "double": False, "network": "impala", "loss": "implicit_quantile", "huber_delta": 1,
    "bootstrap": "munchausen", "replay": "prioritized", "optimizer": "adam", "layer_norm": False,
    "clip_rewards": True, "frame_stack": 4, "epsilon_end": 0.01, "total_rows": 50_000_000,
}  # fmt: skip


def test_btr_has_the_published_settings_on_atari():
    config = preset("btr", env="ale:pong")
    assert {field: getattr(config, field) for field in CLARK_2024} == CLARK_2024


def test_btr_makes_one_gradient_step_for_64_rows():
    config = preset("btr", env="ale:pong")
    assert (config.rows_per_iteration, config.gradient_steps_per_iteration) == (64, 1)
    assert config.optimizer_epsilon == pytest.approx(1.953e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("env", "network"),
    [("CartPole-v1", "auto"), ("Breakout-MinAtar", "impala"), ("pixels:bat-and-ball", "impala")],
)
def test_btr_elsewhere_has_the_periods_of_the_task_and_the_torso_of_pictures(env, network):
    config, task = preset("btr", env=env), preset("dqn", env=env)
    assert config.network == network
    assert config.spectral_norm == (network == "impala")
    for field in ("num_envs", "learning_rate", "target_period", "gamma", "total_rows"):
        assert getattr(config, field) == getattr(task, field)
    assert (config.bootstrap, config.quantiles, config.n_step) == ("munchausen", 8, 3)


@pytest.mark.parametrize("name", ["pixels", "dqn", "fast", "pqn", "rainbow", "btr"])
def test_every_algorithm_stacks_four_frames_of_bat_and_ball(name):
    config = preset(name, env="pixels:bat-and-ball")
    assert config.frame_stack == 4
    assert (config.solve_return, config.stop_when) == (9.9, "solved")
    assert config.network == ("impala" if name == "btr" else "nature")
