"""Runs without jit: values in custom parts, small sizes, and the first non-finite output."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.cli import run as run_command
from jaxdqn.config.presets import PRESETS, preset
from jaxdqn.errors import RunFailed
from jaxdqn.run.debug import FLAGS, _infinities_inside_jax, debug, debug_config
from tests.toys import DEVICE_PRESETS, noisy, tiny

OWN = """
import flax.linen as nn
import jax.numpy as jnp

class Net(nn.Module):
    @nn.compact
    def __call__(self, obs):
        x = nn.Dense(3)(obs)
        return x if self.is_initializing() else inverse(x)

def inverse(x):
    return x / (x - x)

def net():
    return Net()
"""


class Seeing(nn.Module):
    seen: tuple = ()

    @nn.compact
    def __call__(self, obs):
        if not isinstance(obs, jax.core.Tracer):
            SEEN.append(np.asarray(obs))
        return nn.Dense(2)(obs)


SEEN: list[np.ndarray] = []
EXPLORED: list[np.ndarray] = []


def explore(key, q, exploration):
    if not isinstance(q, jax.core.Tracer):
        EXPLORED.append(np.asarray(q))
    return jnp.argmax(q, axis=1).astype(jnp.int32), jnp.ones(q.shape[:1], jnp.float32)


@pytest.mark.slow
def test_own_parts_see_values_and_the_sizes_are_small_and_said():
    SEEN.clear()
    lines = []
    config = tiny(num_envs=16, batch_size=64, replay_capacity=4096, warmup_rows=256)
    metrics = debug(
        config, iterations=1, report=lines.append, environment=noisy(), network=Seeing()
    )
    assert len(metrics) == 1
    assert jnp.isfinite(metrics[0].loss)
    assert any((obs >= 1).all() and obs.shape == (2, 2) for obs in SEEN)
    assert "num_envs=2" in lines[0]
    assert "batch_size=8" in lines[0]
    assert not jax.config.jax_disable_jit
    assert not jax.config.jax_debug_nans


RECURRENT = {"recurrent": "lstm", "recurrent_size": 4, "burn_in": 1, "sequence_length": 3}
ALGORITHMS = {
    "pqn": preset("pqn"),
    "recurrent": tiny(**RECURRENT),
    "prioritised": tiny(replay="prioritized"),
    "recurrent, prioritised": tiny(**RECURRENT, replay="prioritized"),
    "rainbow": preset("rainbow"),
    "munchausen": tiny(loss="implicit_quantile", bootstrap="munchausen"),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", ALGORITHMS.values(), ids=ALGORITHMS)
def test_an_iteration_of_every_algorithm_passes_the_checks(config):
    """No function of JAX that computes with infinity inside, such as softmax, is reported."""
    (metrics,) = debug(config, iterations=1, report=lambda line: None, environment=noisy())
    assert np.isfinite(metrics.loss)
    assert metrics.gradient_steps >= 1


def test_infinity_is_reported_before_softmax_and_not_inside_it():
    before, softmax = {name: getattr(jax.config, name) for name in FLAGS}, jax.nn.softmax
    for name, value in FLAGS.items():
        jax.config.update(name, value)
    try:
        with _infinities_inside_jax():
            for function in (jax.nn.softmax, jax.nn.log_softmax, jax.nn.logsumexp):
                assert np.isfinite(jax.vmap(function)(jnp.ones((2, 3)))).all()
            zero = jnp.zeros(2)
            np.testing.assert_array_equal(jax.scipy.special.xlogy(zero, zero), zero)
            with pytest.raises(FloatingPointError):
                jax.nn.softmax(1 / zero)
            with pytest.raises(FloatingPointError):
                jax.nn.softmax(zero - jnp.inf)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert jax.nn.softmax is softmax


@pytest.mark.slow
def test_the_first_function_with_an_output_that_is_not_finite_is_named(tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    assert run_command.main(["acrobot", "--debug", "--network", f"{file}:net"]) == 1
    error = capsys.readouterr().err
    assert f"inverse ({file}:12): its output is not finite" in error
    three = noisy(num_actions=3)
    with pytest.raises(RunFailed, match="its output is not finite"):
        debug(tiny(), report=lambda line: None, environment=three, network=f"{file}:net")
    assert run_command.main(["cartpole", "--debug", "--out", str(tmp_path / "x")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("processes", [[], ["--env-processes"]])
def test_parts_of_a_run_on_the_host_see_values(tmp_path, capsys, processes):
    SEEN.clear()
    EXPLORED.clear()
    before = {name: getattr(jax.config, name) for name in FLAGS}
    config = tiny(env="gymnasium:CartPole-v1", env_processes=bool(processes))
    metrics = debug(
        config, iterations=1, report=lambda line: None, network=Seeing(), explore=explore
    )
    assert jnp.isfinite(metrics[0].loss)
    assert metrics[0].rows > 0
    assert any(obs.shape == (2, 4) for obs in SEEN)
    assert any(q.shape == (2, 2) for q in EXPLORED)
    assert before == {name: getattr(jax.config, name) for name in FLAGS}
    file = tmp_path / "own.py"
    file.write_text(OWN.replace("Dense(3)", "Dense(2)"))
    own = ["--env", "gymnasium:CartPole-v1", "--network", f"{file}:net"]
    assert run_command.main(["dqn", "--debug", *own, *processes]) == 1
    assert f"inverse ({file}:12): its output is not finite" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(DEVICE_PRESETS))
def test_the_small_sizes_of_every_preset_are_valid(name):
    small = debug_config(PRESETS[name])
    assert small.num_envs <= 2
    assert small.algorithm == "pqn" or small.gradient_steps_per_iteration == 1
