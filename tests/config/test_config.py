"""What a configuration refuses, what it derives, and that it needs no JAX."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdqn.config.config import Config, from_dict, replace, to_dict
from jaxdqn.config.presets import PRESETS, preset
from jaxdqn.errors import suggest

FIELDS = [field.name for field in dataclasses.fields(Config)]
NAN, INF = float("nan"), float("inf")


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
def test_a_count_below_one_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value}: must be at least 1$"):
        Config(**{name: value})


@pytest.mark.parametrize(
    "name",
    [
        "huber_delta",
        "learning_rate",
        "adam_epsilon",
        "temperature",
        "clip_value",
        "clip_norm",
        "replay_ratio",
    ],
)
@pytest.mark.parametrize("value", [0.0, -0.5, 0])
def test_a_scale_that_is_not_positive_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value}: must be greater than 0$"):
        Config(**{name: value})


@pytest.mark.parametrize("name", ["epsilon_start", "epsilon_end", "epsilon_repeat", "gamma"])
@pytest.mark.parametrize("value", [-0.01, 1.01, 2])
def test_a_probability_outside_0_and_1_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value}: must be between 0 and 1$"):
        Config(**{name: value})


FLOATS = [field.name for field in dataclasses.fields(Config) if str(field.type).startswith("float")]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_number_that_is_not_finite_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value}: must be finite$"):
        Config(**{name: value})


@pytest.mark.parametrize("name", FLOATS)
def test_a_whole_number_above_all_floats_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}=10+: must be "):
        Config(**{name: 10**400})


def test_a_ratio_that_overflows_is_refused():
    with pytest.raises(ValueError, match=r"^replay_ratio=1e\+308: must be "):
        Config(replay_ratio=1e308)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["0.5", True, (1.0,)])
def test_a_number_of_another_type_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))}: must be a number$"):
        Config(**{name: value})


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(Config) if field.type == "int"]
)
@pytest.mark.parametrize("value", [1.0, NAN, "1", True, None])
def test_a_count_that_is_no_whole_number_is_refused(name, value):
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
    ],
)
@pytest.mark.parametrize("value", ["Huber", "", None, 3, ["mlp"]])
def test_a_choice_that_does_not_exist_is_refused_with_those_that_do(name, value):
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
        ({"seed": -1}, "seed=-1: must be from 0"),
        ({"seed": 2**32}, "seed=4294967296: must be from 0"),
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
            "batch_size=2048: must be at most replay_capacity=1024",
        ),
        (
            {"accumulate": 16, "replay_capacity": 1024},
            "batch_size=128: must be at most replay_capacity=1024 with accumulate=16",
        ),
        ({"warmup_rows": 64}, "batch_size=128: must be at most warmup_rows=64"),
        (
            {"warmup_rows": 128, "n_step": 4},
            "warmup_rows=128: must be above n_step*num_envs=128",
        ),
        ({"total_rows": 1024}, "total_rows=1024: must be above the 1024 rows of warm-up"),
        (
            {"replay_ratio": 3.0},
            "replay_ratio=3.0: must be a multiple of "
            "batch_size*accumulate/(num_envs*rollout_length)=4",
        ),
        ({"replay_ratio": 1.0}, "replay_ratio=1.0: must be a multiple of"),
        ({"replay_ratio": 1e-9}, "replay_ratio=1e-09: must be a multiple of"),
        ({"stop_when_solved": True}, "stop_when_solved=True: must be left False unless"),
    ],
)
def test_a_refusal_names_field_value_and_constraint(overrides, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Config(**overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mapping": "pmap"}, "mapping='pmap': must be shard_map unless replicas learn together"),
        (
            {"mapping": "pmap", "num_seeds": 4, "devices": 2},
            "mapping='pmap': must be shard_map unless replicas learn together",
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
def test_what_would_do_nothing_is_refused(overrides, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Config(**overrides)


def test_what_replicas_use_is_accepted():
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
def test_a_sweep_of_what_is_not_in_use_is_refused(sweep, unused, used):
    ((choice, value),) = used.items()
    with pytest.raises(ValueError, match=rf"^sweep='{sweep}'.* in use.*{choice}='{value}'"):
        Config(sweep=(sweep,), **unused)
    assert Config(sweep=(sweep,), **used).learners == 2


def test_epsilon_is_in_use_with_boltzmann_exploration_and_its_end_with_a_constant_schedule():
    Config(sweep=("epsilon_start=0.5,1", "epsilon_end=0,0.1"), exploration="boltzmann")
    Config(sweep=("epsilon_end=0,0.1",), epsilon_schedule="constant")


def test_one_value_twice_in_a_sweep_is_refused():
    with pytest.raises(ValueError, match=r"^sweep='gamma=0.9,1,0.90': must be of values that diff"):
        Config(sweep=("gamma=0.9,1,0.90",))


def test_a_sweep_of_a_run_with_replicas_options_is_refused_by_these_not_by_its_values():
    with pytest.raises(ValueError, match=r"^mapping='pmap': must be"):
        Config(sweep=("gamma=0.9,1",), mapping="pmap", devices=2)


def test_an_exponential_schedule_from_or_to_zero_is_refused():
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


def test_derived_figures_worked_by_hand():
    config = small()
    assert config.rows_per_iteration == 8
    assert config.replay_rows == 128
    assert config.warmup_iterations == 8  # 64 rows, the first multiple of 8 above 60
    # 936 rows are left, 117 iterations; 13 iterations a log; 9 chunks of 13.
    assert (config.num_chunks, config.iterations_per_chunk) == (9, 13)
    assert config.chunks_per_evaluation == 2  # 250 rows by chunks of 104
    assert small(eval_every=270).chunks_per_evaluation == 3
    assert config.gradient_steps_per_iteration == 3
    assert config.total_gradient_steps == 351


def test_chunks_are_evened_out():
    config = small(log_every=300, eval_every=0)
    # 38 iterations a log make 4 chunks of the 117; 30 each do, where 38 would act 35 too many.
    assert (config.num_chunks, config.iterations_per_chunk) == (4, 30)
    assert config.total_gradient_steps == 360
    assert config.chunks_per_evaluation == 4  # at the end only


def test_a_log_or_an_evaluation_is_at_least_an_iteration_or_a_chunk():
    config = small(log_every=1, eval_every=1)
    assert (config.num_chunks, config.iterations_per_chunk) == (117, 1)
    assert config.chunks_per_evaluation == 1


def test_totals_are_divided_over_devices():
    config = small(devices=2)
    assert (config.envs_per_device, config.batch_per_device) == (2, 8)
    alone = small()
    assert (alone.envs_per_device, alone.batch_per_device) == (4, 16)
    assert config.replay_rows == alone.replay_rows == 128
    assert config.rows_per_iteration == 8


@pytest.mark.parametrize(("ratio", "accumulate", "steps"), [(2.0, 1, 1), (8.0, 1, 4), (8, 2, 2)])
def test_a_replay_ratio_sets_the_gradient_steps(ratio, accumulate, steps):
    # 8 rows acted; each gradient step learns from 16 * accumulate.
    config = small(replay_ratio=ratio, accumulate=accumulate)
    assert config.gradient_steps_per_iteration == steps


WILD = st.sampled_from(
    [NAN, INF, -INF, 1e308, 1e-320, -1.0, 0.0, 0.5, 1.0, 2.0, 10**400, "x", None, True, ()]
)
WHOLE = st.one_of(st.integers(-2, 12), st.integers(2**29, 2**33), WILD)
KINDS = {
    "int": WHOLE,
    "int | None": st.one_of(WHOLE, st.none()),
    "bool": st.one_of(st.booleans(), WILD),
    "str | None": st.one_of(st.text(max_size=3), st.none(), WILD),
    "str": st.one_of(st.text(max_size=3), WILD),
    "tuple[str, ...]": st.one_of(
        st.lists(
            st.sampled_from(
                ["gamma=0.9,1", "gamma=2", "loss=1", "learning-rate=1e-3", "x", "gamma="]
            ),
            max_size=2,
        ).map(tuple),
        WILD,
    ),
    "tuple[int, ...]": st.one_of(st.lists(st.integers(0, 9), max_size=2).map(tuple), WILD),
}


def values_of(field):
    kind = str(field.type)
    if kind.startswith("Literal"):
        choices = re.findall(r"[\"'](\w+)[\"']", kind)
        return st.one_of(st.sampled_from(choices), WILD)
    if kind.startswith("float"):
        return st.one_of(st.floats(0, 2), st.sampled_from([1, 4.0, 8.0]), WILD)
    return KINDS[kind]


# Few at a time: the first that is wrong hides what the others would do.
ANYTHING = st.lists(st.sampled_from(dataclasses.fields(Config)), min_size=1, max_size=3).flatmap(
    lambda fields: st.fixed_dictionaries({field.name: values_of(field) for field in fields})
)
# Sizes that often go together, so that many a configuration is accepted.
PLAUSIBLE = st.fixed_dictionaries(
    {
        "num_envs": st.sampled_from([1, 2, 4, 6, 32]),
        "rollout_length": st.sampled_from([1, 2, 4, 5]),
        "batch_size": st.sampled_from([2, 8, 32, 100]),
        "accumulate": st.sampled_from([1, 2]),
        "devices": st.sampled_from([1, 1, 2]),
        "n_step": st.integers(1, 5),
        "frame_stack": st.integers(1, 4),
        "replay_capacity": st.sampled_from([64, 256, 960, 2880]),
        "warmup_rows": st.integers(50, 600),
        "total_rows": st.integers(300, 5000),
        "log_every": st.integers(1, 2000),
        "eval_every": st.integers(0, 2000),
        "replay_ratio": st.sampled_from([None, None, 1, 2.0, 8.0]),
        "solve_return": st.sampled_from([None, 1.5]),
        "target_tau": st.sampled_from([None, 0.01]),
        "hidden_sizes": st.sampled_from([(), (8,), (16, 16)]),
        "double": st.booleans(),
        "loss": st.sampled_from(["huber", "squared"]),
        "exploration": st.sampled_from(["epsilon_greedy", "boltzmann"]),
        "epsilon_repeat": st.sampled_from([0.0, 0.0, 0.5]),
        "epsilon_schedule": st.sampled_from(["linear", "exponential", "constant"]),
        "epsilon_ladder": st.sampled_from([None, 7.0]),
        "optimizer": st.sampled_from(["adam", "rmsprop", "radam"]),
        "learning_rate_schedule": st.sampled_from(["constant", "linear", "cosine"]),
        "clip_value": st.sampled_from([None, 1.0]),
        "clip_norm": st.sampled_from([None, 1.0]),
        "normalize_gradients": st.booleans(),
        "precision": st.sampled_from(["float32", "bfloat16"]),
        "guard": st.sampled_from(["off", "skip", "rollback", "stop"]),
        "checkpoint_every": st.sampled_from([None, 0, 500]),
    }
)


def check_refused_or_sound(overrides):
    """Return whether the configuration is accepted; then its figures must hang together."""
    try:
        config = Config(**overrides)
    except ValueError as error:
        name, _, constraint = str(error).partition("=")
        assert name in FIELDS
        assert ": must be " in constraint
        return False
    per_iteration, per_chunk = config.rows_per_iteration, config.iterations_per_chunk
    warmup = config.warmup_iterations * per_iteration
    learning = config.num_chunks * per_chunk * per_iteration
    last_chunk = per_chunk * per_iteration
    assert warmup + learning - last_chunk < config.total_rows <= warmup + learning
    assert config.envs_per_device * config.devices == config.num_envs
    if config.algorithm == "pqn":
        batch = config.batch_per_device * config.devices
        assert batch * config.minibatches == per_iteration
    else:
        assert 0 <= warmup - config.warmup_rows < per_iteration
        assert config.batch_size * config.accumulate <= min(warmup, config.replay_capacity)
        assert config.replay_rows * config.num_envs == config.replay_capacity
        assert config.replay_rows % config.rollout_length == 0
        assert config.replay_rows > config.reach + config.frame_stack + config.rollout_length
        assert config.batch_per_device * config.devices == config.batch_size
    assert config.chunks_per_evaluation >= 1
    steps = config.gradient_steps_per_iteration
    assert config.total_gradient_steps == config.num_chunks * per_chunk * steps
    if config.replay_ratio is not None:
        learned = steps * config.rows_per_gradient_step
        assert abs(learned / per_iteration - config.replay_ratio) < 1e-3
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    return True


@settings(max_examples=1_000)
@given(ANYTHING)
def test_any_values_are_refused_by_value_error_or_sound(overrides):
    check_refused_or_sound(overrides)


def test_plausible_values_are_refused_by_value_error_or_sound():
    accepted = []

    @settings(max_examples=1_000)
    @given(PLAUSIBLE)
    def check(overrides):
        accepted.append(check_refused_or_sound(overrides))

    check()
    assert 20 < sum(accepted) < len(accepted)


@pytest.mark.parametrize("config", [Config(), *PRESETS.values(), small(hidden_sizes=(), seed=7)])
def test_a_configuration_comes_back_from_json(config):
    text = json.dumps(to_dict(config), allow_nan=False)
    assert from_dict(json.loads(text)) == config
    assert set(json.loads(text)) == set(FIELDS)


def test_an_unknown_field_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"^lerning_rate: .*nearest: learning_rate"):
        from_dict({"lerning_rate": 0.1})
    with pytest.raises(ValueError, match=r"^num_env: .*nearest: num_envs"):
        replace(Config(), num_env=3)
    with pytest.raises(ValueError, match=r"^epsilon_strat: .*nearest: epsilon_start"):
        preset("cartpole", epsilon_strat=0.1)


def test_from_dict_validates():
    with pytest.raises(ValueError, match=r"^gamma=2: must be"):
        from_dict({"gamma": 2})


def test_a_preset_is_found_by_name_and_changed_by_field():
    assert preset("cartpole") == PRESETS["cartpole"]
    changed = preset("cartpole", gamma=0.5)
    assert changed.gamma == 0.5
    assert dataclasses.replace(changed, gamma=PRESETS["cartpole"].gamma) == PRESETS["cartpole"]


@pytest.mark.parametrize("name", ["cartpol", "CartPole", "cart-pole", "zzz", ""])
def test_an_unknown_preset_is_refused_with_the_nearest(name):
    with pytest.raises(ValueError, match=rf"^preset={name!r}: must be one of .*cartpole"):
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
