"""Bootstrap targets: worked examples, NumPy, limit cases and rlax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.backend_choices import tracing_for
from jaxdqn.losses import (
    double_q_target,
    epsilon_greedy_policy,
    lambda_targets,
    legal_values,
    q_learning_target,
    retrace_target,
    td_error,
    truncated_importance_ratio,
)
from tests.toys import quick_jit

rlax = pytest.importorskip("rlax")


def _batch(seed=0, batch=64, actions=5):
    rng = np.random.default_rng(seed)
    return {
        "q_tm1": rng.normal(size=(batch, actions)).astype(np.float32),
        "a_tm1": rng.integers(0, actions, batch).astype(np.int32),
        "r_t": rng.normal(size=batch).astype(np.float32),
        "discount_t": rng.choice([0.0, 0.9, 0.99**3], batch).astype(np.float32),
        "q_t": rng.normal(size=(batch, actions)).astype(np.float32),
        "selector": rng.normal(size=(batch, actions)).astype(np.float32),
    }


def _scalar(value):
    return jnp.float32(value)


def test_worked_example_of_a_target():
    target = q_learning_target(_scalar(10), _scalar(0.9), jnp.array([3.0, 15.0, -2.0]))
    np.testing.assert_allclose(target, 23.5, rtol=1e-6)


def test_worked_example_of_a_td_error():
    target = q_learning_target(_scalar(1), _scalar(0.9), jnp.array([3.0, 1.0]))
    td = td_error(jnp.array([0.0, 2.0]), jnp.int32(1), target)
    np.testing.assert_allclose(td, 1.7, rtol=1e-6)


def test_worked_example_of_a_bellman_backup_over_two_outcomes():
    one = q_learning_target(_scalar(2), _scalar(0.9), jnp.array([1.0, 0.0]))
    other = q_learning_target(_scalar(4), _scalar(0.9), jnp.array([2.0, 3.0]))
    np.testing.assert_allclose(0.7 * one + 0.3 * other, 4.04, rtol=1e-6)


def test_q_learning_target_agrees_with_numpy():
    b = _batch()
    ours = jax.vmap(q_learning_target)(b["r_t"], b["discount_t"], b["q_t"])
    np.testing.assert_allclose(ours, b["r_t"] + b["discount_t"] * b["q_t"].max(1), rtol=1e-6)


def test_double_q_target_is_the_target_networks_value_of_the_online_action():
    b = _batch()
    ours = jax.vmap(double_q_target)(b["r_t"], b["discount_t"], b["q_t"], b["selector"])
    chosen = b["q_t"][np.arange(64), b["selector"].argmax(1)]
    np.testing.assert_allclose(ours, b["r_t"] + b["discount_t"] * chosen, rtol=1e-6)


def test_double_with_the_same_selector_is_plain_q_learning():
    b = _batch()
    plain = jax.vmap(q_learning_target)(b["r_t"], b["discount_t"], b["q_t"])
    double = jax.vmap(double_q_target)(b["r_t"], b["discount_t"], b["q_t"], b["q_t"])
    np.testing.assert_array_equal(plain, double)


def test_a_zero_discount_leaves_the_reward():
    b = _batch()
    zero = np.zeros_like(b["discount_t"])
    np.testing.assert_array_equal(jax.vmap(q_learning_target)(b["r_t"], zero, b["q_t"]), b["r_t"])
    np.testing.assert_array_equal(
        jax.vmap(double_q_target)(b["r_t"], zero, b["q_t"], b["selector"]), b["r_t"]
    )


def test_td_errors_agree_with_rlax():
    b = {name: jnp.asarray(value) for name, value in _batch(1).items()}
    plain = jax.vmap(q_learning_target)(b["r_t"], b["discount_t"], b["q_t"])
    double = jax.vmap(double_q_target)(b["r_t"], b["discount_t"], b["q_t"], b["selector"])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        start = (b["q_tm1"], b["a_tm1"], b["r_t"], b["discount_t"])
        peer_plain = jax.vmap(rlax.q_learning)(*start, b["q_t"])
        peer_double = jax.vmap(rlax.double_q_learning)(*start, b["q_t"], b["selector"])
    for target, peer in ((plain, peer_plain), (double, peer_double)):
        ours = jax.vmap(td_error)(b["q_tm1"], b["a_tm1"], target)
        np.testing.assert_allclose(ours, peer, atol=1e-6)


def test_no_gradient_flows_through_a_target():
    r_t, discount_t = _scalar(1), _scalar(0.9)
    q_t = jnp.array([1.0, 2.0])

    def loss(r_t, discount_t, q_t, selector):
        plain = q_learning_target(r_t, discount_t, q_t)
        return plain + double_q_target(r_t, discount_t, q_t, selector)

    gradients = jax.grad(loss, (0, 1, 2, 3))(r_t, discount_t, q_t, q_t)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("function", [q_learning_target, double_q_target])
def test_a_batch_without_vmap_is_rejected(function):
    batch, q = jnp.zeros(4), jnp.zeros((4, 2))
    values = (q,) if function is q_learning_target else (q, q)
    with pytest.raises(AssertionError, match="rank"):
        function(batch, batch, *values)


@pytest.mark.parametrize("limit", [0.5, 1.0, 1e9])
def test_truncated_importance_ratios_agree_with_rlax(limit):
    rng = np.random.default_rng(0)
    policy, behaviour = rng.normal(size=(2, 64, 5)).astype(np.float32) * 2
    actions = rng.integers(0, 5, 64).astype(np.int32)
    probs = [jax.nn.softmax(logits)[np.arange(64), actions] for logits in (policy, behaviour)]
    ratios = jax.vmap(truncated_importance_ratio, in_axes=(0, 0, None))(*probs, _scalar(limit))
    with pytest.warns(PendingDeprecationWarning):
        expected = rlax.categorical_importance_sampling_ratios(policy, behaviour, actions)
    np.testing.assert_allclose(ratios, np.minimum(expected, limit), rtol=1e-5)
    assert (np.asarray(expected) > 1).any()


def test_retrace_targets_agree_with_rlax():
    rng = np.random.default_rng(0)
    reward, value, taken = rng.normal(size=(3, 6)).astype(np.float32)
    discount = np.float32([0.9, 0.9, 0.9, 0.9, 0.9, 0])
    traces = np.float32([1, 0.3, 0, 0.7, 1, 0])
    expected = rlax.general_off_policy_returns_from_q_and_v(
        taken[:-1], value, reward, discount, traces[:-1]
    )
    for start in range(6):
        arguments = (leaf[start:] for leaf in (reward, discount, value, taken, traces))
        target = retrace_target(*map(jnp.asarray, arguments))
        np.testing.assert_allclose(target, expected[start], rtol=1e-5)


def test_a_retrace_target_worked_by_hand():
    # 1 + 0.5 (4 + 0.5 (G - 3)), where G = 2 + 0.5 * 6 = 5
    arguments = [[1.0, 2.0], [0.5, 0.5], [4.0, 6.0], [3.0, np.nan], [0.5, 0.0]]
    assert float(retrace_target(*map(jnp.float32, arguments))) == 3.5


def test_the_epsilon_greedy_policy_is_over_the_legal_actions():
    q, epsilon = jnp.float32([3, 5, 5, 1]), jnp.float32(0.2)
    np.testing.assert_allclose(
        epsilon_greedy_policy(q, epsilon), [0.05, 0.85, 0.05, 0.05], rtol=1e-6
    )
    legal = jnp.array([True, False, True, False])
    policy = epsilon_greedy_policy(legal_values(q, legal), epsilon, legal)
    np.testing.assert_allclose(policy, [0.1, 0, 0.9, 0], rtol=1e-6)
    none = jnp.zeros(4, jnp.bool_)
    assert float(epsilon_greedy_policy(legal_values(q, none), epsilon, none).sum()) == 1


def test_the_associative_form_of_lambda_targets_equals_the_sequential_one():
    rng = np.random.default_rng(0)
    steps = 12
    invalid = rng.random(steps) < 0.2
    terminated = np.roll(invalid, -1) & (rng.random(steps) < 0.7)
    terminated[-1] = True
    values = rng.normal(size=steps + 1).astype(np.float32)
    # The observation after a terminal state, and so its value, may be arbitrary.
    values[1:][terminated] = np.nan
    arguments = [
        jnp.asarray(rng.normal(size=steps), jnp.float32),
        jnp.where(jnp.asarray(terminated), 0.0, jnp.float32(0.9)),
        jnp.asarray(values),
        jnp.asarray(invalid),
    ]

    def over_decays(*arguments):
        return jax.vmap(lambda decay: lambda_targets(*arguments, decay))(jnp.float32([0, 0.65, 1]))

    sequential = np.asarray(quick_jit(over_decays)(*arguments))
    with tracing_for("gpu"):
        form = jax.jit(lambda *arguments: over_decays(*arguments)).trace(*arguments)
        assert "scan" not in str(form.jaxpr)
        associative = np.asarray(quick_jit(lambda *arguments: over_decays(*arguments))(*arguments))
    np.testing.assert_allclose(associative, sequential, rtol=1e-5, atol=1e-6)
    assert np.isfinite(sequential[:, ~invalid]).all()
    assert np.isnan(sequential[:, invalid]).any()
