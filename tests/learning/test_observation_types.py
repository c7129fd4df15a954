"""One-hot observations of any dtype are learned equally well: the corridor of docs/python.md."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdqn
from jaxdqn.run import run


def corridor(dtype):
    """Return a corridor of 11 cells whose right end has reward 1; every step costs 0.01."""

    def observe(position):
        return jax.nn.one_hot(position, 11, dtype=dtype)

    def reset(key):
        position = jax.random.randint(key, (), 2, 9, jnp.int32)
        return position, observe(position)

    def step(key, position, action):
        position = jnp.clip(position + 2 * action - 1, 0, 10)
        reward = jnp.where(position == 10, 1.0, -0.01)
        return position, observe(position), reward, position == 10

    return jaxdqn.make_environment(
        reset, step, name="corridor", num_actions=2, max_episode_steps=50
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_the_corridor_is_learned_on_ten_seeds(dtype):
    config = jaxdqn.Config(env="corridor", total_rows=50_000, loss="squared", num_seeds=10)
    result = run(config, environment=corridor(dtype))
    # From cell x the optimum is 1 - 0.01 (9 - x); its mean over the starts 2 to 8 is 0.96.
    returns = [learner["eval_return_mean"] for learner in result.summary["learners"]]
    np.testing.assert_allclose(returns, 0.96, atol=0.01)
