"""Exploration: schedules and ladder against closed forms, actions by chi-square tests."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdqn.agent.exploration import (
    boltzmann,
    epsilon_greedy,
    epsilon_ladder,
    epsilon_schedule,
    repeat_actions,
    select_actions,
)
from jaxdqn.types import Exploration

Q = np.array([0.3, 1.1, -0.4, 0.9], np.float32)
DRAWS = 40_000


def _softmax(x):
    weight = np.exp(np.float64(x - x.max()))
    return weight / weight.sum()


def _schedule(kind, rows, start=1.0, end=0.1, decay=1000):
    scalar = jnp.float32
    of_rows = partial(epsilon_schedule, kind, scalar(start), scalar(end), decay)
    return jax.vmap(of_rows)(jnp.asarray(rows, jnp.float32))


def test_linear_schedule_agrees_with_numpy_and_stays_at_its_ends():
    rows = np.array([-500.0, 0, 1, 250, 999, 1000, 5000, 2.0**40])
    expected = np.interp(rows, [0, 1000], [1.0, 0.1])
    np.testing.assert_allclose(_schedule("linear", rows), expected, rtol=1e-6)


def test_exponential_schedule_falls_by_equal_factors_then_stays_constant():
    values = np.asarray(_schedule("exponential", [-10, 0, 250, 500, 750, 1000, 9000]))
    np.testing.assert_allclose(values[[0, 1, 5, 6]], [1.0, 1.0, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(values[2:6] / values[1:5], 0.1**0.25, rtol=1e-5)


def test_constant_schedule_equals_its_end():
    np.testing.assert_array_equal(_schedule("constant", [0, 10, 1e9]), np.float32([0.1] * 3))


def test_a_schedule_can_be_vmapped_over_its_ends():
    def at_half(start, end):
        return epsilon_schedule("linear", start, end, 100, jnp.float32(50))

    values = jax.jit(jax.vmap(at_half))(jnp.array([1.0, 0.5]), jnp.array([0.0, 0.1]))
    np.testing.assert_allclose(values, [0.5, 0.3], rtol=1e-6)


def test_ladder_agrees_with_horgan_et_al():
    # Their section 4: N=360 actors, epsilon 0.4, alpha 7.
    index = np.arange(360)
    ladder = epsilon_ladder(jnp.float32(0.4), 7.0, jnp.asarray(index, jnp.int32), 360)
    np.testing.assert_allclose(ladder, 0.4 ** (1 + 7 * index / 359), rtol=1e-4)
    np.testing.assert_allclose(ladder[jnp.array([0, -1])], [0.4, 0.4**8], rtol=1e-4)


def test_ladder_of_one_environment_is_epsilon():
    np.testing.assert_allclose(epsilon_ladder(jnp.float32(0.3), 7.0, jnp.arange(1), 1), [0.3])


def test_ladder_over_two_devices_equals_the_ladder_of_one():
    single = epsilon_ladder(jnp.float32(0.4), 7.0, jnp.arange(8), 8)
    parts = [epsilon_ladder(jnp.float32(0.4), 7.0, 4 * d + jnp.arange(4), 8) for d in range(2)]
    np.testing.assert_array_equal(single, np.concatenate(parts))


def _draw(kind, epsilon, q=Q, temperature=0.5, seed=0):
    """Select actions for DRAWS environments with the same q in one batch."""
    exploration = Exploration(jnp.full(DRAWS, epsilon, jnp.float32), jnp.float32(temperature))
    batch = jnp.broadcast_to(jnp.asarray(q), (DRAWS, len(q)))
    select = jax.jit(select_actions, static_argnums=0)
    return select(kind, jax.random.key(seed), batch, exploration)


def _policy(kind, epsilon, q=Q, temperature=0.5):
    """Return the behaviour policy by its definition."""
    best = np.eye(len(q))[np.argmax(q)] if kind == "epsilon_greedy" else _softmax(q / temperature)
    return epsilon / len(q) + (1 - epsilon) * best


def _assert_drawn_from(actions, policy):
    counts = np.bincount(np.asarray(actions), minlength=len(policy))
    possible = policy > 0
    assert not counts[~possible].any()
    expected = policy[possible] / policy[possible].sum() * counts.sum()
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], expected).pvalue > 1e-3


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["epsilon_greedy", "boltzmann"])
def test_actions_and_their_probabilities_follow_the_behaviour_policy(kind, epsilon):
    actions, prob = _draw(kind, epsilon)
    policy = _policy(kind, epsilon)
    assert actions.dtype == jnp.int32
    assert prob.dtype == jnp.float32
    _assert_drawn_from(actions, policy)
    np.testing.assert_allclose(prob, policy[np.asarray(actions)], rtol=1e-5)


def test_a_small_epsilon_still_explores_every_action_equally():
    # The epsilon of a ladder's last environment: only the smallest coins choose the action.
    q = np.arange(18, dtype=np.float32)
    parts = [_draw("epsilon_greedy", 0.4**8, q, seed=seed)[0] for seed in range(40)]
    counts = np.bincount(np.concatenate(parts), minlength=18)
    assert stats.chisquare(counts[:-1]).pvalue > 1e-3
    expected = 40 * DRAWS * 0.4**8 * 17 / 18
    assert abs(counts[:-1].sum() - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("tied", [[2.0, 2.0, 1.0], [1.0, 2.0, 2.0]])
def test_the_first_of_equal_actions_is_greedy(tied):
    actions, prob = _draw("epsilon_greedy", 0.3, np.float32(tied))
    policy = _policy("epsilon_greedy", 0.3, np.array(tied))
    _assert_drawn_from(actions, policy)
    np.testing.assert_allclose(prob, policy[np.asarray(actions)], rtol=1e-5)


def test_boltzmann_handles_large_values_and_never_draws_an_action_of_probability_zero():
    q = np.array([1e4, 1e4 + 0.5, -1e4], np.float32)
    actions, prob = _draw("boltzmann", 0.0, q)
    _assert_drawn_from(actions, np.append(_softmax(q[:2] / 0.5), 0.0))
    assert np.all(np.asarray(prob) > 0.2)


def test_boltzmann_limits_are_uniform_when_hot_and_greedy_when_cold():
    _assert_drawn_from(_draw("boltzmann", 0.0, temperature=1e6)[0], np.full(4, 0.25))
    assert np.all(np.asarray(_draw("boltzmann", 0.0, temperature=1e-4)[0]) == 1)


@pytest.mark.parametrize("kind", ["epsilon_greedy", "boltzmann"])
def test_every_environment_has_an_independent_coin(kind):
    # Neighbours agree as often as independent draws; with a shared coin they always agree.
    actions = np.asarray(_draw(kind, 0.5)[0])
    policy = _policy(kind, 0.5)
    agree = np.mean(actions[::2] == actions[1::2])
    expected = np.sum(policy**2)
    assert abs(agree - expected) < 5 * np.sqrt(expected * (1 - expected) / (DRAWS / 2))


def test_each_environment_follows_its_own_epsilon():
    epsilon = jnp.tile(jnp.array([0.0, 1.0]), DRAWS // 2)
    batch = jnp.broadcast_to(jnp.asarray(Q), (DRAWS, 4))
    exploration = Exploration(epsilon, jnp.float32(1))
    actions, _ = select_actions("epsilon_greedy", jax.random.key(3), batch, exploration)
    assert np.all(np.asarray(actions[::2]) == 1)
    _assert_drawn_from(actions[1::2], np.full(4, 0.25))


def test_another_key_gives_other_actions():
    one, other = (np.asarray(_draw("boltzmann", 0.5, seed=seed)[0]) for seed in (0, 1))
    assert 0.2 < np.mean(one != other) < 0.9


def test_the_functions_for_one_environment_draw_from_the_same_policies():
    keys = jax.random.split(jax.random.key(5), DRAWS)
    q = jnp.asarray(Q)
    functions = {
        "epsilon_greedy": lambda key: epsilon_greedy(key, q, jnp.float32(0.3)),
        "boltzmann": lambda key: boltzmann(key, q, jnp.float32(0.5)),
    }
    for kind, epsilon in (("epsilon_greedy", 0.3), ("boltzmann", 0.0)):
        actions, prob = jax.jit(jax.vmap(functions[kind]))(keys)
        policy = _policy(kind, epsilon)
        _assert_drawn_from(actions, policy)
        np.testing.assert_allclose(prob, policy[np.asarray(actions)], rtol=1e-5)


def test_actions_repeat_with_the_given_probability_and_report_it_exactly():
    num_envs, num_actions = 40_000, 3
    q = jnp.tile(jnp.array([[0.0, 1.0, 0.5]]), (num_envs, 1))
    epsilon, repeat = 0.3, 0.25
    exploration = Exploration(
        epsilon=jnp.full(num_envs, epsilon),
        temperature=jnp.float32(1.0),
        repeat=jnp.full(num_envs, repeat),
        previous=jnp.full(num_envs, 2, jnp.int32),
    )
    key_base, key_repeat = jax.random.split(jax.random.key(3))
    base, _ = select_actions("epsilon_greedy", key_base, q, exploration)
    actions, prob = repeat_actions(key_repeat, q, base, exploration)
    expected = (1 - repeat) * np.array([0.1, 0.8, 0.1]) + repeat * np.array([0.0, 0.0, 1.0])
    counts = np.bincount(np.asarray(actions), minlength=num_actions)
    assert stats.chisquare(counts, expected * num_envs).pvalue > 1e-3
    np.testing.assert_allclose(prob, expected[np.asarray(actions)], rtol=1e-5)


@pytest.mark.slow
def test_a_repeat_probability_of_zero_changes_nothing():
    q = jax.random.normal(jax.random.key(0), (64, 4))
    exploration = Exploration(
        epsilon=jnp.full(64, 0.4),
        temperature=jnp.float32(1.0),
        repeat=jnp.zeros(64),
        previous=jnp.zeros(64, jnp.int32),
    )
    base, prob = select_actions("epsilon_greedy", jax.random.key(1), q, exploration)
    actions, repeated_prob = repeat_actions(jax.random.key(2), q, base, exploration)
    np.testing.assert_array_equal(actions, base)
    np.testing.assert_allclose(repeated_prob, prob, rtol=1e-6)
