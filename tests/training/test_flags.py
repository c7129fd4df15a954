"""Training under flags of JAX that users set: x64, debugging, rbg keys, strict promotion."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.presets import preset
from jaxdqn.envs import make_environment
from jaxdqn.run.runner import run
from jaxdqn.training.evaluation import make_evaluator
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from tests.storage.runs import shrunk
from tests.toys import DEVICE_PRESETS, noisy, quick_jit, quick_runs, tiny
from tests.training.test_vector_trainer import on_host, runner_of

WIDE = ("float64", "int64", "uint64")


def fast_or_slow(*fast):
    """Return every preset of the device; those that are not ``fast`` are marked slow."""
    slow = [name for name in DEVICE_PRESETS if name not in fast]
    return [*fast, *(pytest.param(name, marks=pytest.mark.slow) for name in slow)]


@pytest.mark.parametrize(
    "name", fast_or_slow("cartpole", "breakout", "iqn", "rainbow", "recurrent", "pqn")
)
def test_every_preset_keeps_32_bits_under_x64(name):
    with jax.enable_x64(True):
        trainer = make_trainer(shrunk(DEVICE_PRESETS[name]))
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        leaves = jax.tree_util.tree_leaves_with_path((state, jax.eval_shape(trainer.step, state)))
    names = [jax.tree_util.keystr(path) for path, leaf in leaves if str(leaf.dtype) in WIDE]
    # Gymnax determines the types in the state of its environments.
    assert not [name for name in names if ".env_state" not in name]


@contextmanager
def checks():
    """Turn on 64-bit types, checks for NaN and infinity, and rbg keys.

    Strict dtype promotion, rank promotion as an error and warnings as errors hold in every test
    (``tests/conftest.py``, ``pyproject.toml``).
    """
    with (
        jax.enable_x64(True),
        jax.debug_nans(True),
        jax.debug_infs(True),
        jax.default_prng_impl("rbg"),
    ):
        yield


@pytest.mark.parametrize("name", fast_or_slow("dqn", "pqn"))
def test_every_preset_learns_under_x64_rbg_keys_and_the_checks_for_nan_infinity_and_transfers(name):
    config = shrunk(DEVICE_PRESETS[name])
    with checks():
        trainer = make_trainer(config)
        state = quick_jit(trainer.init)(jax.random.key(0))
        with jax.transfer_guard("disallow"):
            after, metrics = quick_jit(trainer.chunk(2))(state)
        assert metrics.gradient_steps > 0
        assert jnp.isfinite(metrics.loss)
        assert (metrics.lost, metrics.skipped) == (0, 0)
        assert jax.random.key_impl(after.key) == "rbg"
        assert_moved(state.agent.params, after.agent.params)


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
@pytest.mark.parametrize("name", fast_or_slow("cartpole", "breakout", "recurrent", "pqn"))
def test_every_preset_is_evaluated_in_32_bits_under_x64(name, epsilon):
    config = shrunk(DEVICE_PRESETS[name])
    with checks():
        trainer = make_trainer(config)
        evaluate = make_evaluator(
            trainer.agent,
            trainer.environment,
            3,
            frame_stack=config.frame_stack,
            epsilon=epsilon,
        )
        params = jax.eval_shape(trainer.init, jax.random.key(0)).agent.params
        found = jax.eval_shape(evaluate, params, jax.random.key(0))
    assert not [leaf for leaf in jax.tree.leaves(found) if str(leaf.dtype) in WIDE]


def test_a_run_ends_with_its_results_under_x64_rbg_keys_and_the_checks(tmp_path):
    with checks(), quick_runs():
        result = run(tiny(eval_episodes=4, eval_epsilon=0.1), out=tmp_path / "run")
    assert result.summary["gradient_steps"] > 0
    assert np.isfinite(result.summary["eval_return_mean"])


def simulator(shape, dtype, num_actions):
    """Return an environment on the host with random observations and episodes of nine steps."""

    def observe(key):
        return (255 * jax.random.uniform(key, shape, jnp.float32)).astype(dtype)

    def step(key, state, action):
        return state, observe(key), action.astype(jnp.float32), jnp.bool(False)

    return on_host(
        make_environment(
            lambda key: (jnp.int32(0), observe(key)),
            step,
            name="simulator",
            num_actions=num_actions,
            max_episode_steps=9,
        )
    )


OF_THE_HOST = {
    "atari": (preset("atari"), ((84, 84), "uint8", 6)),
    "atari-classic": (preset("atari-classic"), ((84, 84), "uint8", 6)),
    "pqn on Atari": (preset("pqn", env="ale:pong"), ((84, 84), "uint8", 6)),
    "driving": (preset("driving"), ((5, 5), "float32", 5)),
    "lunarlander": (preset("lunarlander"), ((8,), "float32", 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THE_HOST)
def test_every_preset_of_the_host_learns_under_x64_rbg_keys_and_the_checks(name):
    config, shape = OF_THE_HOST[name]
    config = shrunk(config)
    with checks():
        runner = runner_of(config, simulator(*shape))
        state = runner.init(jax.random.key(0), hyper_from(config))
        before = jax.tree.map(np.array, state.agent.params)
        after, (metrics, _) = runner.chunk(state, 4)
        runner.close()
    assert metrics.gradient_steps > 0
    assert (metrics.lost, metrics.skipped) == (0, 0)
    assert not [leaf for leaf in jax.tree.leaves(after.replay) if str(leaf.dtype) in WIDE]
    assert_moved(before, after.agent.params)


def assert_moved(before, after):
    """Assert that learning changed the parameters and kept their types."""
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert all(one.dtype == other.dtype for one, other in pairs)
    assert any(not np.array_equal(one, other) for one, other in pairs)


def test_options_that_are_not_given_are_finite():
    assert all(jnp.isfinite(leaf) for leaf in jax.tree.leaves(hyper_from(tiny())))


def test_a_run_without_jit_is_rejected_before_it_starts(tmp_path):
    with (
        jax.disable_jit(),
        pytest.raises(ValueError, match=r"^jax_disable_jit=True: must be False"),
    ):
        run(tiny(), out=tmp_path / "run", environment=noisy())
    assert not (tmp_path / "run").exists()


def test_a_run_starts_and_ends_where_implicit_transfers_are_not_allowed(tmp_path):
    with jax.transfer_guard("disallow"), quick_runs():
        result = run(tiny(eval_episodes=4), out=tmp_path / "run")
        assert jax.config.jax_transfer_guard == "disallow"
    assert result.summary["gradient_steps"] > 0
