"""Presets against the settings that their authors published."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.config.algorithm_presets import ABLATIONS
from jaxdqn.config.presets import preset
from jaxdqn.training.hyper import hyper_from

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
"""Clark et al. 2024, "Beyond the Rainbow", appendix."""

# "squared gradient momentum" and "gradient momentum" of the table are the decays of the two moments
# of RMSProp, and "min squared gradient" is its epsilon.
MNIH_2015 = {
    "batch_size": 32, "gamma": 0.99, "learning_rate": 0.00025, "learning_rate_schedule": "constant",
    "optimizer": "rmsprop", "rmsprop_centered": True, "rmsprop_decay": 0.95, "epsilon_start": 1,
    "epsilon_end": 0.1, "epsilon_schedule": "linear", "replay": "uniform", "n_step": 1,
    "double": False, "dueling": False, "noisy": False, "clip_norm": None,
}  # fmt: skip
"""Mnih et al. 2015, extended data table 1 and section "Training details"."""

MNIH_2015_ATARI = {
    "replay_capacity": 1_000_000, "frame_stack": 4, "target_period": 10_000, "warmup_rows": 50_000,
    "epsilon_decay_rows": 1_000_000, "clip_rewards": True, "network": "nature", "loss": "huber",
    "huber_delta": 1, "eval_epsilon": 0.05,
}  # fmt: skip
"""The same table, where the settings are those of Atari. Its "final exploration frame" is counted
in steps of four frames by the published code, and here."""

HESSEL_2018 = {
    "optimizer": "adam", "optimizer_epsilon": 1.5e-4, "epsilon_schedule": "constant",
    "epsilon_end": 0, "noisy": True, "noisy_sigma": 0.5, "replay": "prioritized",
    "priority_exponent": 0.5, "importance_exponent": 0.4, "n_step": 3, "loss": "categorical",
    "atoms": 51, "double": True, "dueling": True,
}  # fmt: skip
"""Hessel et al. 2018, table 1, and the six parts of section "The Integrated Agent". The exponent of
the importance weights rises from 0.4 to 1 over the budget."""

HESSEL_2018_ATARI = {
    "learning_rate": 0.0000625, "value_min": -10, "value_max": 10, "batch_size": 32, "gamma": 0.99,
    "replay_capacity": 1_000_000, "frame_stack": 4, "clip_rewards": True,
}  # fmt: skip
"""The same table, and its appendix, where the settings are those of Atari."""

GALLICI_2024_CRAFTAX = {
    "algorithm": "pqn", "num_envs": 1024, "rollout_length": 1, "minibatches": 1, "epochs": 1,
    "epsilon_start": 0.1, "epsilon_end": 0.005, "epsilon_decay_rows": 200_000_000,
    "total_rows": 1_000_000_000, "layer_norm": True, "normalize_observations": True,
    "hidden_sizes": (1024,) * 4, "learning_rate": 1e-4, "learning_rate_schedule": "linear",
    "clip_norm": 1, "gamma": 0.99, "trace_decay": 0, "optimizer": "radam",
}  # fmt: skip
"""Gallici et al. 2024, pqn_craftax.yaml of purejaxql. EPS_DECAY is a fraction of the budget."""


HORGAN_2018 = {
    "n_step": 3, "double": True, "dueling": True, "replay": "prioritized", "priority_exponent": 0.6,
    "importance_exponent": 0.4, "epsilon_schedule": "constant", "epsilon_end": 0.4,
    "epsilon_ladder": 7,
}  # fmt: skip
"""Horgan et al. 2018, section 4.1 and appendix C."""


def fields(config, published):
    """Return the fields of a configuration that a publication names."""
    return {field: getattr(config, field) for field in published}


@pytest.mark.parametrize(
    ("name", "env"),
    [("dqn-2015", "CartPole-v1"), ("dqn-2015", "Breakout-MinAtar"), ("atari-classic", "ale:pong")],
)
def test_dqn_2015_has_the_published_optimiser_minibatch_and_exploration(name, env):
    config = preset(name, env=env)
    assert fields(config, MNIH_2015) == MNIH_2015
    # "Update frequency": four actions for one gradient step.
    assert config.rows_per_iteration / config.gradient_steps_per_iteration == 4


def test_atari_classic_has_the_published_settings_of_atari():
    assert fields(preset("atari-classic"), MNIH_2015_ATARI) == MNIH_2015_ATARI


@pytest.mark.parametrize("env", ["CartPole-v1", "Breakout-MinAtar"])
def test_ape_x_has_the_published_exploration_and_replay(env):
    config, task = preset("ape-x", env=env), preset("dqn", env=env)
    assert fields(config, HORGAN_2018) == HORGAN_2018
    assert (config.num_envs, config.learning_rate) == (task.num_envs, task.learning_rate)


@pytest.mark.parametrize("name", ["dqn-2015", "atari-classic"])
def test_mean_gradients_are_scaled_as_the_published_code_scales_sums(name):
    config = preset(name)
    scales = [0.03, 1.0, 30.0]  # variances below, about and above the published epsilon of 0.01
    sums = np.random.default_rng(0).normal(size=(6, 3)) * scales
    mean, square, expected = np.zeros(3), np.zeros(3), np.zeros(3)
    for gradient in sums:  # of a loss, summed over the minibatch; Torch ascends its negative
        mean = 0.95 * mean + 0.05 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        expected -= 0.00025 * gradient / np.sqrt(square - mean**2 + 0.01)
    optimizer = make_optimizer(config)(hyper_from(config))
    params = jnp.zeros(3)
    state = optimizer.init(params)
    for gradient in sums:
        updates, state = optimizer.update(jnp.float32(gradient / 32), state, params)
        params += updates
    np.testing.assert_allclose(params, expected, rtol=1e-4)


@pytest.mark.parametrize("env", ["CartPole-v1", "Breakout-MinAtar", "ale:pong"])
def test_rainbow_has_the_published_settings_of_its_parts(env):
    config, task = preset("rainbow", env=env), preset("dqn", env=env)
    assert fields(config, HESSEL_2018) == HESSEL_2018
    of_the_task = ("learning_rate", "target_period", "batch_size", "gamma", "warmup_rows")
    assert fields(config, of_the_task) == fields(task, of_the_task)


def test_rainbow_has_the_published_settings_of_atari():
    config = preset("rainbow", env="ale:pong")
    assert fields(config, HESSEL_2018_ATARI) == HESSEL_2018_ATARI
    rows_per_gradient_step = config.rows_per_iteration / config.gradient_steps_per_iteration
    # A row is four frames: a minimum history of 80,000, and a target period of 32,000.
    assert 4 * config.warmup_rows == 80_000
    assert 4 * rows_per_gradient_step * config.target_period == 32_000


PART = {
    "double": {"double"},
    "dueling": {"dueling"},
    "n-step": {"n_step"},
    "per": {"replay", "priority_exponent"},
    "c51": {"loss"},
    "noisy": {"noisy", "epsilon_schedule", "epsilon_end"},
}
"""Published settings of each part of Rainbow alone."""


@pytest.mark.parametrize("name", ABLATIONS)
def test_rainbow_without_a_part_keeps_the_settings_of_the_others(name):
    config = preset(name)
    changed = {field for field in HESSEL_2018 if getattr(config, field) != HESSEL_2018[field]}
    assert changed == PART[name.removeprefix("rainbow-no-")]


def test_btr_has_the_published_settings_on_atari():
    assert fields(preset("btr", env="ale:pong"), CLARK_2024) == CLARK_2024


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


CRAFTAX = ["craftax:Craftax-Symbolic-v1", "craftax:Craftax-Classic-Symbolic-v1"]


@pytest.mark.parametrize("env", CRAFTAX)
def test_pqn_has_the_published_settings_of_craftax(env):
    config = preset("pqn", env=env)
    assert config.env == env
    assert fields(config, GALLICI_2024_CRAFTAX) == GALLICI_2024_CRAFTAX


@pytest.mark.parametrize("env", CRAFTAX)
@pytest.mark.parametrize("name", ["dqn", "fast"])
def test_replay_on_craftax_has_the_environments_and_gradient_steps_of_pqn(name, env):
    config, pqn = preset(name, env=env), preset("pqn", env=env)
    equal = ("env", "num_envs", "rollout_length", "gradient_steps_per_iteration", "total_rows",
             "hidden_sizes", "layer_norm", "normalize_observations", "learning_rate", "gamma",
             "epsilon_start", "epsilon_end", "epsilon_decay_rows", "clip_norm")  # fmt: skip
    assert fields(config, equal) == fields(pqn, equal)
    assert config.batch_size == pqn.num_envs * pqn.rollout_length // pqn.minibatches
    assert (config.n_step, config.double) == ((3, True) if name == "fast" else (1, False))


def test_craftax_with_pixels_has_the_settings_of_an_unknown_environment():
    assert (
        preset("dqn", env="craftax:Craftax-Pixels-v1").num_envs == preset("dqn", env="x").num_envs
    )
