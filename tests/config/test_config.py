"""Configurations: sizes that follow from the options, JSON, and an import without JAX."""

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.config import Config, from_dict, replace, to_dict
from jaxdqn.config.presets import PRESETS, preset
from jaxdqn.errors import suggest
from tests.config.cases import FIELDS


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().gamma = 0.5
    with pytest.raises(TypeError):
        Config("CartPole-v1")


def small(**overrides):
    values = {
        "num_envs": 4,
        "rollout_length": 2,
        "gradient_steps": 3,
        "batch_size": 16,
        "replay_capacity": 512,
        "warmup_rows": 60,
        "total_rows": 1000,
        "log_every": 100,
        "eval_every": 250,
    }
    return Config(**{**values, **overrides})


def test_derived_sizes_match_hand_worked_ones():
    config = small()
    assert config.rows_per_iteration == 8
    assert config.replay_rows == 128
    assert config.warmup_iterations == 8  # 64 rows, the first multiple of 8 above 60
    # 936 rows remain, 117 iterations; a log every 13 iterations; 9 chunks of 13.
    assert (config.num_chunks, config.iterations_per_chunk) == (9, 13)
    assert config.chunks_per_evaluation == 2  # 250 rows in chunks of 104
    assert small(eval_every=270).chunks_per_evaluation == 3
    assert config.gradient_steps_per_iteration == 3
    assert config.total_gradient_steps == 351


def test_chunks_have_equal_sizes():
    config = small(log_every=300, eval_every=0)
    # Logs every 38 iterations need 4 chunks for 117; 30 each suffice, 38 would act 35 too many.
    assert (config.num_chunks, config.iterations_per_chunk) == (4, 30)
    assert config.total_gradient_steps == 360
    assert config.chunks_per_evaluation == 4  # at the end only


def test_a_chunk_has_an_iteration_and_an_evaluation_period_a_chunk_at_least():
    config = small(log_every=1, eval_every=1)
    assert (config.num_chunks, config.iterations_per_chunk) == (117, 1)
    assert config.chunks_per_evaluation == 1


def test_totals_are_divided_over_devices():
    config = small(devices=2)
    assert (config.envs_per_device, config.batch_per_device) == (2, 8)
    single = small()
    assert (single.envs_per_device, single.batch_per_device) == (4, 16)
    assert config.replay_rows == single.replay_rows == 128
    assert config.rows_per_iteration == 8


@pytest.mark.parametrize(("ratio", "accumulate", "steps"), [(2.0, 1, 1), (8.0, 1, 4), (8, 2, 2)])
def test_a_replay_ratio_sets_the_gradient_steps(ratio, accumulate, steps):
    # 8 rows acted; each gradient step learns from 16 * accumulate.
    config = small(replay_ratio=ratio, accumulate=accumulate)
    assert config.gradient_steps_per_iteration == steps


@pytest.mark.parametrize("config", [Config(), *PRESETS.values(), small(hidden_sizes=(), seed=7)])
def test_a_configuration_survives_json(config):
    text = json.dumps(to_dict(config), allow_nan=False)
    assert from_dict(json.loads(text)) == config
    assert set(json.loads(text)) == set(FIELDS)


def test_an_unknown_field_is_rejected_with_the_nearest():
    with pytest.raises(ValueError, match=r"^lerning_rate: .*nearest: learning_rate"):
        from_dict({"lerning_rate": 0.1})
    with pytest.raises(ValueError, match=r"^num_env: .*nearest: num_envs"):
        replace(Config(), num_env=3)
    with pytest.raises(ValueError, match=r"^epsilon_strat: .*nearest: epsilon_start"):
        preset("cartpole", epsilon_strat=0.1)


def test_a_preset_is_found_by_name_and_changed_by_field():
    assert preset("cartpole") == PRESETS["cartpole"]
    changed = preset("cartpole", gamma=0.5)
    assert changed.gamma == 0.5
    assert dataclasses.replace(changed, gamma=PRESETS["cartpole"].gamma) == PRESETS["cartpole"]


@pytest.mark.parametrize("name", ["cartpol", "CartPole", "cart-pole", "zzz", ""])
def test_an_unknown_preset_is_rejected_with_the_nearest(name):
    with pytest.raises(ValueError, match=rf"^preset={name!r}: must be .*cartpole"):
        preset(name)


def test_suggestions_are_the_nearest_or_all():
    known = ["learning_rate", "huber_delta", "gamma"]
    assert suggest("lerning_rate", known) == "learning_rate"
    assert suggest("zzz", known) == "learning_rate, huber_delta, gamma"


@pytest.mark.parametrize("statement", ["import jaxdqn", "import jaxdqn.config"])
def test_importing_the_configuration_does_not_import_jax(statement):
    heavy = "{'jax', 'jaxlib', 'flax', 'optax', 'gymnax', 'numpy', 'matplotlib'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_scalars_of_numpy_and_jax_are_accepted_as_python_numbers():
    config = Config(
        seed=np.int64(3),
        learning_rate=np.float32(0.5),
        double=np.bool_(True),
        gamma=jnp.float32(0.25),
        hidden_sizes=(np.int32(8), 16),
    )
    values = [config.seed, config.learning_rate, config.double, config.gamma, *config.hidden_sizes]
    assert values == [3, 0.5, True, 0.25, 8, 16]
    assert [type(value) for value in values] == [int, float, bool, float, int, int]
    assert hash(config) == hash(replace(config))
    assert json.loads(json.dumps(to_dict(config)))["seed"] == 3
    with pytest.raises(ValueError, match=r"seed=array\(\[3\]\): must be a whole number"):
        Config(seed=np.array([3]))
