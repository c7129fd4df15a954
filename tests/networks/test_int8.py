"""Parameters of int8 precision against the quantised export, and acting by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.config import replace
from jaxdqn.export.quantize import quantize, restore
from jaxdqn.networks.int8 import int8_params
from jaxdqn.training.trainer import make_trainer
from tests.toys import noisy, quick_jit, tiny


def params_of(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (3, 3, 2, 5), "weights": (16, 8), "bias": (8,)}
    made = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }
    return {**made, "weights": made["weights"].at[:, 3].set(0.0)}


def test_weights_are_those_of_the_quantised_export():
    params = params_of()
    layout = quantize(params, "int8")
    expected = restore(layout.layout, list(layout.weights))
    rounded = quick_jit(int8_params)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), rounded, expected)
    np.testing.assert_array_equal(rounded["bias"], params["bias"])
    assert (rounded["weights"] != params["weights"]).any()


def test_the_error_is_at_most_half_a_level_of_each_channel():
    params = params_of(1)
    for name in ("kernel", "weights"):
        leaf, rounded = np.asarray(params[name]), np.asarray(int8_params(params)[name])
        largest = np.abs(leaf).reshape(-1, leaf.shape[-1]).max(axis=0)
        assert (np.abs(rounded - leaf) <= 0.5001 * largest / 127).all()


def greedy_actions(config, params, state):
    """Return the actions that the behaviour policy of a configuration takes in many states.

    Without exploration the precision of acting does not change the shapes of ``state``.
    """
    from jaxdqn.communication.collectives import identity_collectives
    from jaxdqn.training.algorithms import make_learning
    from jaxdqn.training.learner import make_learner

    trainer = make_trainer(config, environment=noisy())
    learning = make_learning(config, trainer.agent, identity_collectives)
    learner = make_learner(
        config, trainer.environment.spec, trainer.agent, learning, identity_collectives
    )
    obs = jax.random.normal(jax.random.key(1), state.actor.timestep.obs.shape)
    actor = state.actor._replace(timestep=state.actor.timestep._replace(obs=obs))
    act = quick_jit(lambda key: learner.act(key, params, state.hyper, jnp.float32(1e6), actor))
    return np.concatenate([act(key).actions for key in jax.random.split(jax.random.key(2), 4)])


@pytest.fixture(scope="module")
def greedy_config():
    return tiny(
        num_envs=64, warmup_rows=128, replay_capacity=1024, total_rows=10_000,
        epsilon_schedule="constant", epsilon_end=0.0,
    )  # fmt: skip


def test_acting_agrees_with_float32_and_reads_the_rounded_weights(greedy_config):
    trainer = make_trainer(greedy_config, environment=noisy())
    state = quick_jit(trainer.init)(jax.random.key(3))
    params = state.agent.params
    int8 = replace(greedy_config, act_precision="int8")
    exact = greedy_actions(greedy_config, params, state)
    rounded = greedy_actions(int8, params, state)
    assert np.mean(exact == rounded) >= 0.95
    by_rounded = greedy_actions(greedy_config, quick_jit(int8_params)(params), state)
    np.testing.assert_array_equal(rounded, by_rounded)


def test_int8_acting_is_rejected_with_pqn():
    with pytest.raises(
        ValueError, match="act_precision='int8': must be float32 with algorithm='pqn'"
    ):
        replace(tiny(), algorithm="pqn", act_precision="int8")
