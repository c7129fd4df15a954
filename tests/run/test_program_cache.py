"""Runs share the programs of earlier runs exactly if all static inputs are equal."""

import jax
import numpy as np
import pytest

from jaxdqn.config.config import Config, replace
from jaxdqn.config.loss_registry import LOSSES, Loss
from jaxdqn.config.options import SWEEPABLE
from jaxdqn.networks.build import make_network
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.run import program_cache
from jaxdqn.run.compile import compile_programs
from jaxdqn.run.program_cache import HOST_FIELDS, static_key
from jaxdqn.run.runner import run
from tests.parallel.test_mapping_laws import assert_identical
from tests.toys import noisy, tiny

NO_PARTS = {"environment": None, "network": None, "optimizer": None}

OTHER_HOST_FIELDS = {
    "seed": 7,
    "eval_every": 100,
    "solve_return": 3.0,
    "stop_when": "solved",
    "max_seconds": 1_000.0,
    "checkpoint_every": 200,
    "checkpoint_signals": ("SIGTERM",),
    "keep": 5,
    "rollback_factor": 0.25,
    "rollback_limit": 1,
    "replay_from": "rows.npz",
    "init_from": "another-run",
}

UNUSED_BY_PQN = {
    name: getattr(Config(), name) for name in ("batch_size", "replay_capacity", "warmup_rows")
}
FAMILIES = {
    "munchausen": {
        "bootstrap": "munchausen",
        "replay": "prioritized",
        "clip_value": 5.0,
        "clip_norm": 4.0,
        "target_tau": 0.01,
        "epsilon_schedule": "exponential",
        "learning_rate_schedule": "linear",
    },
    "boltzmann": {"exploration": "boltzmann", "optimizer": "rmsprop"},
    "pqn": {"algorithm": "pqn", "rollout_length": 4, "minibatches": 2, **UNUSED_BY_PQN},
    "replicas": {"devices": 2, "clip_norm": 4.0},
    "population": {"num_seeds": 2, "sweep": ("learning_rate=0.1,0.2",)},
}


def other(config):
    """Return a configuration with another value of every field that is not in the key."""
    scalars = {name: getattr(config, name) for name in SWEEPABLE}
    scaled = {name: value * 0.5 for name, value in scalars.items() if value is not None}
    changed = {"solve_return": 3.0}
    for name, value in {**OTHER_HOST_FIELDS, **scaled}.items():
        try:
            replace(config, **{**changed, name: value})
        except ValueError:
            continue  # a field that this configuration does not use
        changed[name] = value
    if config.sweep:
        changed["sweep"] = ("learning_rate=0.3,0.4",)
    return replace(config, **changed)


@pytest.fixture
def lowered(monkeypatch):
    """Return ``texts(config)``, the programs of a configuration as text, without compilation."""

    def texts(config):
        found = []

        def lower(jitted, options, check):
            found.extend(function.lower(*arguments).as_text() for function, arguments in jitted)
            return [None] * len(jitted)

        monkeypatch.setattr("jaxdqn.run.compile.compile_all", lower)
        trainer, keys = make_mapped_trainer(config, environment=noisy()), learner_keys(config)
        compile_programs(config, trainer, keys, jax.eval_shape(trainer.init, keys.train))
        assert len(found) == (5 if config.learners == 1 else 6)
        return found

    return texts


def test_fields_left_out_of_the_key_are_named_in_one_place():
    assert set(OTHER_HOST_FIELDS) == set(HOST_FIELDS)
    before = tiny(guard="rollback")
    for name, value in OTHER_HOST_FIELDS.items():
        changed = {"solve_return": 3.0, name: value}
        assert static_key(replace(before, **changed), NO_PARTS) == static_key(before, NO_PARTS)


SLOW = ("boltzmann", "munchausen", "population", "replicas")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[pytest.mark.slow] * (name in SLOW))
        for name, family in FAMILIES.items()
    ],
    ids=FAMILIES,
)
def test_programs_with_equal_keys_have_the_same_text(lowered, family):
    """No scalar that is an argument is also a constant of a program."""
    config = tiny(**family)
    changed = other(config)
    read = {name for name in SWEEPABLE if getattr(config, name) != getattr(changed, name)}
    assert {"learning_rate", "gamma", "epsilon_start", "epsilon_end"} <= read
    assert static_key(changed, NO_PARTS) == static_key(config, NO_PARTS)
    assert lowered(changed) == lowered(config)


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_sizes": (8,)},
        {"gradient_steps": 2},
        {"clip_norm": 1.0},
        {"target_tau": 0.1},
        {"total_rows": 800},
        {"eval_episodes": 3},
        {"guard": "off"},
        {"epsilon_decay_rows": 10},
        {"loss": "squared"},
        {"num_seeds": 2},
        {"sweep": ("learning_rate=0.1,0.2",)},
        {"devices": 2},
    ],
    ids=str,
)
def test_a_changed_static_field_changes_the_key(changed):
    assert static_key(tiny(**changed), NO_PARTS) != static_key(tiny(), NO_PARTS)


def test_a_replaced_loss_changes_the_key(monkeypatch):
    monkeypatch.setitem(LOSSES, "mine", Loss(lambda example, hyper: (0.0, 0.0)))
    config = tiny(loss="mine")
    before = static_key(config, NO_PARTS)
    assert static_key(config, NO_PARTS) == before
    monkeypatch.setitem(LOSSES, "mine", Loss(lambda example, hyper: (1.0, 0.0)))
    assert static_key(config, NO_PARTS) != before


def test_own_parts_are_compared_as_static_arguments_of_jit():
    one, another = noisy.__wrapped__(), noisy.__wrapped__()
    config = tiny()

    def key(**parts):
        return static_key(config, {**NO_PARTS, **parts})

    assert key(environment=one) == key(environment=one)
    assert key(environment=one) != key(environment=another)
    assert key(environment=one) != key()
    network = make_network(config, one.spec, None)
    assert key(network=network) != key(network=network._replace(noisy=True))
    unhashable = [[1], [1]]
    assert key(network=unhashable[0]) == key(network=unhashable[0])
    assert key(network=unhashable[0]) != key(network=unhashable[1])


def test_a_setting_of_jax_changes_the_key():
    before = static_key(tiny(), NO_PARTS)
    with jax.default_matmul_precision("bfloat16"):
        assert static_key(tiny(), NO_PARTS) != before
    with jax.enable_x64(True):
        assert static_key(tiny(), NO_PARTS) != before
    assert static_key(tiny(), NO_PARTS) == before


@pytest.fixture
def compilations(monkeypatch):
    """Count compilations, starting without programs of earlier runs."""
    counted = []

    def compile_and_count(config, *others):
        counted.append(config)
        return compile_programs(config, *others)

    monkeypatch.setattr("jaxdqn.run.program_cache.compile_programs", compile_and_count)
    program_cache.clear()
    yield counted
    program_cache.clear()


@pytest.mark.slow
def test_runs_that_share_programs_give_the_results_of_separate_runs(compilations):
    environment = noisy()
    configs = [
        tiny(eval_episodes=6, eval_every=200, clip_norm=1.0, **scalars)
        for scalars in (
            {"seed": 1, "learning_rate": 1e-3},
            {"seed": 2, "learning_rate": 1e-2, "gamma": 0.9, "epsilon_start": 0.5},
        )
    ]
    shared = [run(config, environment=environment) for config in configs]
    assert len(compilations) == 1
    for config, result in zip(configs, shared, strict=True):
        program_cache.clear()
        fresh = run(config, environment=environment)
        assert_identical(result.state, fresh.state)
        assert_identical(result.best_params, fresh.best_params)
    assert len(compilations) == 3
    assert float(shared[1].state.hyper.learning_rate) == np.float32(1e-2)
    assert float(shared[1].state.hyper.gamma) == np.float32(0.9)


def test_only_a_changed_static_field_is_compiled_again(monkeypatch):
    made = []
    monkeypatch.setattr(
        "jaxdqn.run.program_cache.compile_programs", lambda *_: made.append(object()) or made[-1]
    )
    program_cache.clear()
    parts = {**NO_PARTS, "environment": noisy()}

    def programs(config):
        keys = learner_keys(config)
        static = program_cache.static_run(config, keys, parts)
        return program_cache.compiled_programs(static, config, keys)

    first = programs(tiny())
    assert programs(tiny(seed=3, learning_rate=0.5)) is first
    assert programs(tiny(hidden_sizes=(8,))) is not first
    assert len(made) == 2
    program_cache.clear()


def test_the_least_recently_used_programs_are_dropped(monkeypatch):
    monkeypatch.setattr(program_cache, "MAX_ENTRIES", 2)
    program_cache.clear()
    environment = noisy()

    def static(episodes):
        config = tiny(eval_episodes=episodes)
        parts = {**NO_PARTS, "environment": environment}
        return program_cache.static_run(config, learner_keys(config), parts)

    first, second = static(1), static(2)
    assert static(1) is first
    static(3)
    assert static(1) is first
    assert static(2) is not second
    program_cache.clear()
