"""Values of small problems solved by hand: a time limit bootstraps, a terminal state does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.trainer import make_trainer
from tests.toys import cycle, tiny, watched_run

GAMMA = 0.9
REWARDS = (1.0, 0.0, 2.0)
LIMIT = 7
"""No multiple of the cycle's length, so that no state stands for the time that is left."""


def learned_values(environment, size, **overrides):
    """Train a table of values and return it, [size, A]: one-hot observations, no hidden layer."""
    config = tiny(
        hidden_sizes=(),
        gamma=GAMMA,
        loss="squared",
        n_step=overrides.pop("n_step", 1),
        replay_capacity=1024,
        warmup_steps=1024,
        batch_size=64,
        total_steps=6000,
        gradient_steps=4,
        target_period=10,
        learning_rate=0.1,
        learning_rate_schedule="linear",
        epsilon_schedule="constant",
        epsilon_end=1.0,
        **overrides,
    )
    trainer = make_trainer(config, environment=environment)
    iterations = config.num_chunks * config.iterations_per_chunk
    _, end, _, _ = watched_run(trainer, iterations)
    assert end.agent.params["params"]["head"]["Dense_0"]["kernel"].shape == (size, 2)
    states = jnp.eye(size)
    _, _, info = trainer.agent.act(
        jax.random.key(0), end.agent.params, (), states, jnp.zeros(size, bool),
        exploration_off(size),
    )  # fmt: skip
    return np.asarray(info.q)


def exploration_off(size):
    from jaxdqn.types import Exploration

    return Exploration(jnp.zeros(size), jnp.float32(1))
