"""Exploration over legal actions: the distribution, its probabilities, and its limit cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdqn.agent import exploration as module
from jaxdqn.agent.exploration import repeat_actions, select_actions
from jaxdqn.types import Exploration

DRAWS = 20_000
Q = np.array([9e9, 1.0, 0.5, 9e9, -0.5], np.float32)
"""The greatest values are those of illegal actions."""
LEGAL = np.array([False, True, True, False, True])
select = jax.jit(select_actions, static_argnums=0)


def exploration_of(epsilon, legal=LEGAL, **fields):
    legal = () if legal is None else jnp.broadcast_to(jnp.asarray(legal), (DRAWS, len(legal)))
    fields = {"temperature": jnp.float32(0.5), **fields}
    return Exploration(jnp.full(DRAWS, epsilon, jnp.float32), legal=legal, **fields)


def draw(kind, epsilon, q=Q, legal=LEGAL):
    batch = jnp.broadcast_to(jnp.asarray(q), (DRAWS, len(q)))
    return select(kind, jax.random.key(0), batch, exploration_of(epsilon, legal))


def policy(kind, epsilon):
    """Return the behaviour policy by its definition, over all actions."""
    values = Q[LEGAL].astype(np.float64)
    weights = np.exp((values - values.max()) / 0.5) if kind == "boltzmann" else values == 1.0
    probs = np.zeros(len(Q))
    probs[LEGAL] = epsilon / LEGAL.sum() + (1 - epsilon) * weights / weights.sum()
    return probs


def assert_drawn_from(actions, probs):
    counts = np.bincount(np.asarray(actions), minlength=len(probs))
    assert not counts[probs == 0].any()
    positive = probs > 0
    if positive.sum() > 1:
        assert stats.chisquare(counts[positive], probs[positive] * counts.sum()).pvalue > 1e-3


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["epsilon_greedy", "boltzmann"])
def test_actions_and_their_probabilities_are_those_of_the_policy_over_legal_actions(kind, epsilon):
    actions, prob = draw(kind, epsilon)
    probs = policy(kind, epsilon)
    assert_drawn_from(actions, probs)
    np.testing.assert_allclose(prob, probs[np.asarray(actions)], rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon_greedy", "boltzmann"])
def test_a_mask_without_illegal_actions_changes_nothing(kind):
    q = np.float32([0.3, 1.0, -0.5, 0.9])
    free, masked = draw(kind, 0.4, q, None), draw(kind, 0.4, q, np.ones(4, bool))
    np.testing.assert_array_equal(free[0], masked[0])
    np.testing.assert_allclose(free[1], masked[1], rtol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon_greedy", "boltzmann"])
def test_one_legal_action_is_always_taken_with_probability_one(kind):
    for index in range(5):
        actions, prob = draw(kind, 0.5, legal=np.arange(5) == index)
        np.testing.assert_array_equal(actions, index)
        np.testing.assert_allclose(prob, 1.0, rtol=1e-6)


def test_each_environment_has_its_own_mask():
    rng = np.random.default_rng(0)
    legal = rng.random((DRAWS, 5)) < 0.3
    legal[np.arange(DRAWS), rng.integers(0, 5, DRAWS)] = True
    q = jnp.asarray(rng.normal(size=(DRAWS, 5)).astype(np.float32))
    for kind in ("epsilon_greedy", "boltzmann"):
        for epsilon in (0.0, 0.5):
            exploration = exploration_of(epsilon)._replace(legal=jnp.asarray(legal))
            actions = np.asarray(select(kind, jax.random.key(1), q, exploration)[0])
            assert legal[np.arange(DRAWS), actions].all()
    greedy = np.argmax(np.where(legal, q, -np.inf), axis=1)
    actions, _ = select("epsilon_greedy", jax.random.key(2), q,
                        exploration_of(0.0)._replace(legal=jnp.asarray(legal)))  # fmt: skip
    np.testing.assert_array_equal(actions, greedy)


def test_the_largest_random_number_takes_the_last_legal_action(monkeypatch):
    largest = np.float32(1 - 2**-24)
    monkeypatch.setattr(module, "_coins", lambda key, shape: jnp.full(shape, largest))
    # For some epsilons the rest of the number rounds to 1, and the threshold to the whole sum.
    epsilon = jnp.linspace(0.0, 0.3, DRAWS, dtype=jnp.float32)
    exploration = exploration_of(0.0, np.arange(5) < 2)._replace(epsilon=epsilon)
    for kind in ("boltzmann", "epsilon_greedy"):
        q = jnp.broadcast_to(jnp.float32([0.0, 0.3, 9, 9, 9]), (DRAWS, 5))
        actions, prob = select_actions(kind, jax.random.key(0), q, exploration)
        np.testing.assert_array_equal(actions, 1)
        assert ((prob > 0.5) & (prob <= 1)).all()


def test_a_mask_without_a_legal_action_gives_a_defined_action_and_finite_values():
    for kind in ("epsilon_greedy", "boltzmann"):
        actions, prob = draw(kind, 0.5, legal=np.zeros(5, bool))
        assert ((actions >= 0) & (actions < 5)).all()
        assert np.isfinite(prob).all()


def test_the_previous_action_is_repeated_only_while_it_is_legal():
    q = jnp.broadcast_to(jnp.asarray(Q), (DRAWS, 5))
    half = jnp.arange(DRAWS, dtype=jnp.int32) % 2
    exploration = exploration_of(
        0.3, repeat=jnp.full(DRAWS, 0.25), previous=jnp.where(half == 0, 0, 4)
    )
    base, _ = select("epsilon_greedy", jax.random.key(3), q, exploration)
    actions, prob = jax.jit(repeat_actions)(jax.random.key(4), q, base, exploration)
    actions, prob = np.asarray(actions), np.asarray(prob)
    plain = policy("epsilon_greedy", 0.3)
    repeated = 0.75 * plain + 0.25 * (np.arange(5) == 4)
    for index, expected in ((0, plain), (1, repeated)):
        chosen = actions[index::2]
        assert_drawn_from(chosen, expected)
        np.testing.assert_allclose(prob[index::2], expected[chosen], rtol=1e-5)
