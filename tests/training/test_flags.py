"""Training under flags of JAX that users set: x64, debugging, rbg keys, strict promotion."""

import jax
import jax.numpy as jnp
import pytest

from jaxdqn.run.runner import run
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.trainer import make_trainer
from tests.storage.runs import shrunk
from tests.toys import DEVICE_PRESETS, noisy, quick_jit, quick_runs, tiny

WIDE = ("float64", "int64", "uint64")


FAST = ("cartpole", "breakout", "iqn", "rainbow", "recurrent", "pqn")


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in DEVICE_PRESETS
    ],
)
def test_every_preset_keeps_32_bits_under_x64(name):
    with jax.enable_x64(True):
        trainer = make_trainer(shrunk(DEVICE_PRESETS[name]))
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        leaves = jax.tree_util.tree_leaves_with_path((state, jax.eval_shape(trainer.step, state)))
    names = [jax.tree_util.keystr(path) for path, leaf in leaves if str(leaf.dtype) in WIDE]
    # The state of an environment is gymnax's own.
    assert not [name for name in names if ".env_state" not in name]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({}, id="dqn"),
        pytest.param(
            {"replay": "prioritized", "loss": "categorical", "noisy": True, "dueling": True},
            id="rainbow",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"recurrent": "lstm", "warmup_rows": 128, "sequence_length": 4, "burn_in": 1},
            id="recurrent",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_step_runs_under_x64_rbg_keys_and_the_checks_for_nan_infinity_and_transfers(overrides):
    with (
        jax.enable_x64(True),
        jax.debug_nans(True),
        jax.debug_infs(True),
        jax.default_prng_impl("rbg"),
    ):
        trainer = make_trainer(tiny(**overrides), environment=noisy())
        state = quick_jit(trainer.init)(jax.random.key(0))
        with jax.transfer_guard("disallow"):
            _, metrics = quick_jit(trainer.step)(state)
        assert jnp.isfinite(metrics.loss)


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
