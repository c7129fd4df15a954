"""Distributional losses learn a distribution of returns that is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.networks import make_network
from jaxdqn.training.hyper import hyper_from
from jaxdqn.types import Batch, EnvSpec
from tests.toys import tiny

SPEC = EnvSpec("toss", (2,), np.dtype("float32"), 1, None)

OUTCOMES = (0.0, 0.5, 1.0, 1.5)
"""Returns of two coin tosses, the second with half the reward; all equally likely."""


def toss(key, size):
    """Return transitions of two states in sequence; the reward in each is a coin's 0 or 1."""
    second = jnp.arange(size) % 2 == 1
    state = jnp.where(second[:, None], jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]]))
    return Batch(
        obs_tm1=state,
        a_tm1=jnp.zeros(size, jnp.int32),
        r_t=jax.random.bernoulli(key, 0.5, (size,)).astype(jnp.float32),
        discount_t=jnp.where(second, 0.0, 0.5),
        obs_t=jnp.broadcast_to(jnp.array([[0.0, 1.0]]), state.shape),
    )


@pytest.mark.parametrize(
    ("loss", "fields"),
    [
        pytest.param(
            "categorical",
            {"atoms": 4, "value_min": 0.0, "value_max": 1.5},
            marks=pytest.mark.slow,
        ),
        ("quantile", {"quantiles": 8, "huber_delta": 0.02}),
        pytest.param(
            "implicit_quantile",
            {"quantiles": 8, "huber_delta": 0.02, "hidden_sizes": (32,)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_known_distribution_of_returns_is_learned(loss, fields):
    config = tiny(loss=loss, learning_rate=3e-3, **fields)
    network = make_network(config, SPEC)
    agent = make_agent(network, make_optimizer(config), loss=loss, target_period=20)
    hyper = hyper_from(config)

    @jax.jit
    def learn(key):
        state = agent.init(key, jnp.zeros((1, 2)), hyper=hyper)

        def step(state, key):
            key_batch, key_learn = jax.random.split(key)
            batch = toss(key_batch, 256)
            return agent.learn(key_learn, state, batch, jnp.ones(256), hyper=hyper)[0], None

        return jax.lax.scan(step, state, jax.random.split(key, 1500))[0].params

    params = learn(jax.random.key(0))
    output, _ = network.apply(params, None, (), jnp.array([[1.0, 0.0]]), jnp.zeros(1, bool))
    if loss == "categorical":
        probabilities = jax.nn.softmax(output.distribution.logits[0, 0])
        np.testing.assert_allclose(probabilities, np.full(4, 0.25), atol=0.03)
    else:
        quantiles = np.sort(np.asarray(output.distribution.values[0, 0]))
        np.testing.assert_allclose(quantiles, np.repeat(OUTCOMES, 2), atol=0.15)
    np.testing.assert_allclose(output.q_values, 0.75, atol=0.05)
