"""Values of small problems solved by hand: a time limit bootstraps, a terminal state does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import Exploration
from tests.toys import cycle, tiny, watched_run

GAMMA = 0.9
REWARDS = (1.0, 0.0, 2.0)
LIMIT = 7
"""Not a multiple of the cycle's length, so that the state does not reveal the time left."""


def learned_values(environment, **overrides):
    """Train a table of values (one-hot observations, no hidden layer); return it, [states, A]."""
    config = tiny(
        hidden_sizes=(),
        gamma=GAMMA,
        loss="squared",
        replay_capacity=1024,
        warmup_rows=1024,
        batch_size=64,
        total_rows=6000,
        gradient_steps=4,
        target_period=10,
        learning_rate=0.1,
        learning_rate_schedule="linear",
        epsilon_schedule="constant",
        **{"epsilon_end": 1.0, **overrides},
    )
    trainer = make_trainer(config, environment=environment)
    _, end, _, _ = watched_run(trainer, config.num_chunks * config.iterations_per_chunk)
    size = environment.spec.obs_shape[0]
    greedy = Exploration(jnp.zeros(size), jnp.float32(1))
    no = jnp.zeros(size, bool)
    _, _, info = trainer.agent.act(
        jax.random.key(0), end.agent.params, (), jnp.eye(size), no, greedy
    )
    return np.asarray(info.q)


def endless_values():
    """Return the cycle's values by a geometric series: each round is discounted by gamma**3."""
    rounds = [sum(GAMMA**k * REWARDS[(s + k) % 3] for k in range(3)) for s in range(3)]
    return np.asarray(rounds) / (1 - GAMMA**3)


def values_if_the_limit_were_terminal():
    """Return the cycle's values if the seventh step, from state 0, cut the bootstrap.

    An episode leaves state 0 three times, at times 0, 3 and 6; the last of them, a third of its
    transitions, would have no successor.
    """
    follows = np.asarray([[0, 2 / 3, 0], [0, 0, 1], [1, 0, 0]])
    return np.linalg.solve(np.eye(3) - GAMMA * follows, REWARDS)


def limit_as_terminal(environment):
    """Return the environment with its time limit reported as a terminal state, the mistake."""

    def step(key, state, action):
        state, timestep = environment.step(key, state, action)
        ended = timestep.terminated | timestep.truncated
        return state, timestep._replace(terminated=ended, truncated=jnp.zeros_like(ended))

    return environment._replace(step=step)


def test_values_under_a_time_limit_are_those_of_the_endless_problem():
    learned = learned_values(cycle(REWARDS, limit=LIMIT))
    value = endless_values()
    np.testing.assert_allclose(learned[:, 0], value, rtol=0.02)
    np.testing.assert_allclose(learned[:, 1], value - 1, rtol=0.02)


@pytest.mark.slow
def test_values_are_far_off_if_the_time_limit_is_treated_as_terminal():
    learned = learned_values(limit_as_terminal(cycle(REWARDS, limit=LIMIT)))
    np.testing.assert_allclose(learned[:, 0], values_if_the_limit_were_terminal(), rtol=0.05)
    assert (learned[:, 0] < 0.6 * endless_values()).all()


def test_nothing_follows_a_terminal_state():
    # A line of six states; the sixth is terminal and is never left.
    rewards = (1.0, 0.0, 2.0, -1.0, 3.0, 100.0)
    learned = learned_values(cycle(rewards, limit=None, terminal_at=5))
    value = [sum(GAMMA ** (k - s) * rewards[k] for k in range(s, 5)) for s in range(5)]
    np.testing.assert_allclose(learned[:5, 0], value, rtol=0.02)
    np.testing.assert_allclose(learned[:5, 1], np.asarray(value) - 1, rtol=0.02)


@pytest.mark.parametrize("ends", ["truncated", pytest.param("terminated", marks=pytest.mark.slow)])
def test_n_step_returns_end_as_one_step_returns_do(ends):
    """Act greedily, since n-step returns contain the costs of random actions."""
    several = {"n_step": 3, "epsilon_end": 0.0}
    if ends == "truncated":
        learned = learned_values(cycle(REWARDS, limit=LIMIT), **several)
        value = endless_values()
    else:
        rewards = (1.0, 2.0, 3.0, 4.0, 100.0)
        learned = learned_values(cycle(rewards, limit=None, terminal_at=4), **several)[:4]
        value = [sum(GAMMA ** (k - s) * rewards[k] for k in range(s, 4)) for s in range(4)]
    np.testing.assert_allclose(learned.max(axis=1), value, rtol=0.02)
