"""Random configurations, and the check that each is rejected or consistent."""

import dataclasses
import json
import re

from hypothesis import strategies as st

from jaxdqn.config.config import Config, from_dict, to_dict

FIELDS = [field.name for field in dataclasses.fields(Config)]
NAN, INF = float("nan"), float("inf")

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
        choices = re.findall(r"[\"']([\w-]+)[\"']", kind)
        return st.one_of(st.sampled_from(choices), WILD)
    if kind.startswith("float"):
        return st.one_of(st.floats(0, 2), st.sampled_from([1, 4.0, 8.0]), WILD)
    return KINDS[kind]


# Few at a time: the first invalid field hides the effect of the others.
ANYTHING = st.lists(st.sampled_from(dataclasses.fields(Config)), min_size=1, max_size=3).flatmap(
    lambda fields: st.fixed_dictionaries({field.name: values_of(field) for field in fields})
)
# Sizes that are often consistent, so that many configurations are accepted.
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


def check_rejected_or_consistent(overrides):
    """Return whether a configuration is accepted; if so, assert that its sizes are consistent."""
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
    assert config.envs_per_device * config.replicas == config.num_envs
    if config.algorithm == "pqn":
        batch = config.batch_per_device * config.replicas
        assert batch * config.minibatches == per_iteration
    else:
        assert 0 <= warmup - config.warmup_rows < per_iteration
        assert config.batch_size * config.accumulate <= min(warmup, config.replay_capacity)
        assert config.replay_rows * config.num_envs == config.replay_capacity
        assert config.replay_rows % config.rollout_length == 0
        assert config.replay_rows > config.reach + config.frame_stack + config.rollout_length
        assert config.batch_per_device * config.replicas == config.batch_size
    assert config.chunks_per_evaluation >= 1
    steps = config.gradient_steps_per_iteration
    assert config.total_gradient_steps == config.num_chunks * per_chunk * steps
    if config.replay_ratio is not None:
        learned = steps * config.rows_per_gradient_step
        assert abs(learned / per_iteration - config.replay_ratio) < 1e-3
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    return True
