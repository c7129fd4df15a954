"""Validation of configurations: every invalid value is rejected by name, value and constraint."""

import dataclasses
import re

import pytest
from hypothesis import given, settings

from jaxdqn.config.config import Config, from_dict
from tests.config.cases import ANYTHING, INF, NAN, PLAUSIBLE, check_rejected_or_consistent


@pytest.mark.parametrize(
    "name",
    [
        "total_rows",
        "num_envs",
        "rollout_length",
        "gradient_steps",
        "batch_size",
        "accumulate",
        "n_step",
        "target_period",
        "epsilon_decay_rows",
        "replay_capacity",
        "warmup_rows",
        "frame_stack",
        "eval_episodes",
        "log_every",
        "devices",
    ],
)
@pytest.mark.parametrize("value", [0, -1, -(10**30)])
def test_a_count_below_one_is_rejected(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value}: must be at least 1$"):
        Config(**{name: value})


@pytest.mark.parametrize(
    "name",
    [
        "huber_delta",
        "learning_rate",
        "optimizer_epsilon",
        "temperature",
        "clip_value",
        "clip_norm",
        "replay_ratio",
    ],
)
@pytest.mark.parametrize("value", [0.0, -0.5, 0])
def test_a_scale_that_is_not_positive_is_rejected(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value}: must be above 0$"):
        Config(**{name: value})


@pytest.mark.parametrize("name", ["epsilon_start", "epsilon_end", "epsilon_repeat", "gamma"])
@pytest.mark.parametrize("value", [-0.01, 1.01, 2])
def test_a_probability_outside_0_and_1_is_rejected(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value}: must be between 0 and 1$"):
        Config(**{name: value})


FLOATS = [field.name for field in dataclasses.fields(Config) if str(field.type).startswith("float")]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_number_that_is_not_finite_is_rejected(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value}: must be finite$"):
        Config(**{name: value})


@pytest.mark.parametrize("name", FLOATS)
def test_a_whole_number_above_every_float_is_rejected(name):
    with pytest.raises(ValueError, match=rf"^{name}=10+: must be "):
        Config(**{name: 10**400})


def test_a_ratio_that_overflows_is_rejected():
    with pytest.raises(ValueError, match=r"^replay_ratio=1e\+308: must be "):
        Config(replay_ratio=1e308)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["0.5", True, (1.0,)])
def test_a_number_of_another_type_is_rejected(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))}: must be a number$"):
        Config(**{name: value})


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(Config) if field.type == "int"]
)
@pytest.mark.parametrize("value", [1.0, NAN, "1", True, None])
def test_a_count_that_is_not_a_whole_number_is_rejected(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value!r}: must be a whole number$"):
        Config(**{name: value})


@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "optimizer",
        "learning_rate_schedule",
        "exploration",
        "epsilon_schedule",
        "network",
        "convolution",
        "precision",
        "matmul_precision",
    ],
)
@pytest.mark.parametrize("value", ["Huber", "", None, 3, ["mlp"]])
def test_an_unknown_choice_is_rejected_with_the_known_ones(name, value):
    default = getattr(Config(), name)
    match = rf"^{name}={re.escape(repr(value))}: must be one of .*\b{default}\b"
    with pytest.raises(ValueError, match=match):
        Config(**{name: value})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"env": 3}, "env=3: must be a string"),
        ({"double": 1}, "double=1: must be True or False"),
        ({"normalize_gradients": None}, "normalize_gradients=None: must be True or False"),
        ({"hidden_sizes": [64]}, r"hidden_sizes=[64]: must be a tuple"),
        ({"hidden_sizes": (64, 0)}, r"hidden_sizes=(64, 0): must be a tuple"),
        ({"hidden_sizes": (64.0,)}, r"hidden_sizes=(64.0,): must be a tuple"),
        ({"target_tau": 0.0}, "target_tau=0.0: must be above 0 and at most 1"),
        ({"target_tau": 1.5}, "target_tau=1.5: must be above 0 and at most 1"),
        ({"epsilon_ladder": -1.0}, "epsilon_ladder=-1.0: must be at least 0"),
        ({"seed": -1}, "seed=-1: must be between 0 and 4294967295"),
        ({"seed": 2**32}, "seed=4294967296: must be between 0 and 4294967295"),
        ({"eval_every": -1}, "eval_every=-1: must be at least 0"),
        ({"devices": 3}, "num_envs=32: must be a multiple of devices=3"),
        (
            {"devices": 3, "num_envs": 33, "replay_capacity": 33 * 100},
            "batch_size=128: must be a multiple of devices=3",
        ),
        (
            {"replay_capacity": 1000},
            "replay_capacity=1000: must be a multiple of num_envs*rollout_length=32, such as 992",
        ),
        (
            {"replay_capacity": 7},
            "replay_capacity=7: must be a multiple of num_envs*rollout_length=32, such as 32",
        ),
        (
            {"rollout_length": 3, "replay_capacity": 32 * 100},
            "replay_capacity=3200: must be a multiple of num_envs*rollout_length=96, such as 3168",
        ),
        (
            {"n_step": 3, "frame_stack": 4, "replay_capacity": 32 * 8},
            "replay_capacity=256: must be above num_envs*(n_step+frame_stack+rollout_length)=256",
        ),
        ({"replay_capacity": 2**30}, "replay_capacity=1073741824: must be below 1073741824"),
        (
            {"batch_size": 2048, "replay_capacity": 1024},
            "batch_size=2048: must be at most replay_capacity/accumulate=1024",
        ),
        (
            {"accumulate": 16, "replay_capacity": 1024},
            "batch_size=128: must be at most replay_capacity/accumulate=64",
        ),
        ({"warmup_rows": 64}, "batch_size=128: must be at most warmup_rows/accumulate=64"),
        (
            {"warmup_rows": 128, "n_step": 4},
            "warmup_rows=128: must be above n_step*num_envs=128",
        ),
        (
            {"importance_ratios": True},
            "importance_ratios=True: must be False with n_step=1: one-step targets",
        ),
        (
            {"importance_ratios": True, "bootstrap": "soft"},
            "importance_ratios=True: must be False with bootstrap='soft'",
        ),
        (
            {"importance_ratios": True, "n_step": 3, "loss": "quantile"},
            "importance_ratios=True: must be False with loss='quantile'",
        ),
        (
            {"importance_ratios": True, "n_step": 3, "replay_from": "rows.npz"},
            "importance_ratios=True: must be False with replay_from",
        ),
        (
            {"importance_ratios": True, "recurrent": "lstm"},
            "importance_ratios=True: must be False with recurrent='lstm'",
        ),
        (
            {"target_epsilon": 0.1, "n_step": 3},
            "target_epsilon=0.1: must be 0.0 unless importance_ratios=True",
        ),
        ({"total_rows": 1024}, "total_rows=1024: must be above the 1024 rows of warm-up"),
        (
            {"replay_ratio": 3.0},
            "replay_ratio=3.0: must be a multiple of "
            "batch_size*accumulate/(num_envs*rollout_length)=4",
        ),
        ({"replay_ratio": 1.0}, "replay_ratio=1.0: must be a multiple of"),
        ({"replay_ratio": 1e-9}, "replay_ratio=1e-09: must be a multiple of"),
        ({"stop_when": "held"}, "stop_when='held': must be never unless solve_return"),
    ],
)
def test_an_error_names_field_value_and_constraint(overrides, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Config(**overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mapping": "pmap"}, "mapping='pmap': must be shard_map without data-parallel replicas"),
        (
            {"mapping": "pmap", "num_seeds": 4, "devices": 2},
            "mapping='pmap': must be shard_map without data-parallel replicas",
        ),
        (
            {"top_k_fraction": 0.5, "devices": 2},
            "top_k_fraction=0.5: must be 0.01 unless compression='top_k'",
        ),
        (
            {"top_k_fraction": 0.5, "devices": 2, "compression": "int8"},
            "top_k_fraction=0.5: must be 0.01 unless compression='top_k'",
        ),
    ],
)
def test_an_option_without_effect_is_rejected(overrides, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Config(**overrides)


def test_options_of_replicas_are_accepted_with_several_devices():
    Config(devices=2, mapping="pmap")
    Config(devices=2, compression="top_k", top_k_fraction=0.5)


@pytest.mark.parametrize(
    ("sweep", "unused", "used"),
    [
        ("huber_delta=1,2", {"loss": "squared"}, {"loss": "huber"}),
        ("temperature=1,2", {"exploration": "epsilon_greedy"}, {"exploration": "boltzmann"}),
        ("epsilon_start=0.5,1", {"epsilon_schedule": "constant"}, {"epsilon_schedule": "linear"}),
    ],
)
def test_a_sweep_of_an_option_without_effect_is_rejected(sweep, unused, used):
    ((choice, value),) = used.items()
    with pytest.raises(ValueError, match=rf"^sweep='{sweep}'.* in use.*{choice}='{value}'"):
        Config(sweep=(sweep,), **unused)
    assert Config(sweep=(sweep,), **used).learners == 2


def test_epsilon_can_be_swept_with_boltzmann_and_its_end_with_a_constant_schedule():
    Config(sweep=("epsilon_start=0.5,1", "epsilon_end=0,0.1"), exploration="boltzmann")
    Config(sweep=("epsilon_end=0,0.1",), epsilon_schedule="constant")


def test_a_repeated_value_in_a_sweep_is_rejected():
    with pytest.raises(ValueError, match=r"^sweep='gamma=0.9,1,0.90': must be of distinct val"):
        Config(sweep=("gamma=0.9,1,0.90",))


def test_options_of_replicas_are_rejected_by_their_own_names_in_a_sweep():
    with pytest.raises(ValueError, match=r"^mapping='pmap': must be"):
        Config(sweep=("gamma=0.9,1",), mapping="pmap", devices=2)


def test_an_exponential_schedule_from_or_to_zero_is_rejected():
    for name in ("epsilon_start", "epsilon_end"):
        with pytest.raises(ValueError, match=rf"^{name}=0.0: must be"):
            Config(epsilon_schedule="exponential", **{name: 0.0})


def test_values_at_the_edge_of_a_range_are_accepted():
    Config(gamma=0.0, epsilon_start=0.0, epsilon_end=1.0, target_tau=1.0, epsilon_ladder=0.0)
    Config(gamma=1, target_tau=1, seed=2**32 - 1, eval_every=0, hidden_sizes=())
    Config(warmup_rows=128, n_step=3)
    Config(total_rows=1025)
    Config(n_step=3, frame_stack=4, replay_capacity=32 * 9)
    Config(devices=4, replay_ratio=8.0)


EXAMPLES = [150, pytest.param(1_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("examples", EXAMPLES)
def test_random_values_are_rejected_by_value_error_or_consistent(examples):
    @settings(max_examples=examples)
    @given(ANYTHING)
    def check(overrides):
        check_rejected_or_consistent(overrides)

    check()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_plausible_values_are_rejected_by_value_error_or_consistent(examples):
    accepted = []

    @settings(max_examples=examples)
    @given(PLAUSIBLE)
    def check(overrides):
        accepted.append(check_rejected_or_consistent(overrides))

    check()
    assert 20 < sum(accepted) < len(accepted)


def test_from_dict_validates():
    with pytest.raises(ValueError, match=r"^gamma=2: must be"):
        from_dict({"gamma": 2})
