"""Losses of return distributions: rlax, NumPy twins, and processes known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdqn.losses import (
    categorical_loss,
    categorical_mean,
    categorical_project,
    categorical_target,
    munchausen_bonus,
    q_learning_target,
    quantile_huber_loss,
    quantile_midpoints,
    quantile_target,
    soft_q_target,
)

rlax = pytest.importorskip("rlax")
ATOMS = jnp.linspace(-3.0, 5.0, 17)


def batch(seed=0, size=32, actions=4, atoms=17):
    rng = np.random.default_rng(seed)
    return {
        "logits_tm1": rng.normal(size=(size, actions, atoms)).astype(np.float32) * 2,
        "logits_t": rng.normal(size=(size, actions, atoms)).astype(np.float32) * 2,
        "a_tm1": rng.integers(0, actions, size).astype(np.int32),
        "r_t": rng.normal(size=size).astype(np.float32) * 3,
        "discount_t": rng.choice([0.0, 0.9, 0.97], size).astype(np.float32),
        "selector": rng.normal(size=(size, actions)).astype(np.float32),
    }


def test_soft_targets_are_the_softmax_policys_value_and_entropy():
    rng = np.random.default_rng(0)
    q = rng.normal(size=6)
    for temperature in (0.05, 0.7, 3.0):
        policy = np.exp(q / temperature - (q / temperature).max())
        policy /= policy.sum()
        value = policy @ (q - temperature * np.log(policy))
        target = soft_q_target(
            jnp.float32(1.5), jnp.float32(0.9), jnp.float32(q), jnp.float32(temperature)
        )
        np.testing.assert_allclose(target, 1.5 + 0.9 * value, rtol=1e-5)


def test_a_cold_soft_target_is_the_plain_one_and_overflows_nothing():
    q = jnp.array([500.0, -300.0, 499.0])
    args = (jnp.float32(2), jnp.float32(0.99), q)
    np.testing.assert_allclose(
        soft_q_target(*args, jnp.float32(1e-3)), q_learning_target(*args), rtol=1e-6
    )


@pytest.mark.parametrize(("action", "clipped"), [(0, False), (1, False), (2, True)])
def test_the_munchausen_bonus_is_the_scaled_clipped_log_policy(action, clipped):
    q, temperature = np.array([1.0, 0.98, -2.0]), 0.03
    log_policy = q / temperature - np.log(np.exp((q - 1.0) / temperature).sum()) - 1.0 / temperature
    bonus = munchausen_bonus(
        jnp.float32(q), jnp.int32(action), jnp.float32(temperature), jnp.float32(0.9),
        jnp.float32(-1.0),
    )  # fmt: skip
    expected = 0.9 * max(temperature * log_policy[action], -1.0)
    np.testing.assert_allclose(bonus, expected, rtol=1e-4)
    assert (float(bonus) == pytest.approx(-0.9)) == clipped


def test_projection_agrees_with_rlax_and_with_a_loop():
    rng = np.random.default_rng(1)
    for _ in range(20):
        positions = np.sort(rng.normal(size=9) * 5).astype(np.float32)
        probabilities = rng.dirichlet(np.ones(9)).astype(np.float32)
        ours = categorical_project(jnp.asarray(positions), jnp.asarray(probabilities), ATOMS)
        theirs = rlax.categorical_l2_project(positions, probabilities, ATOMS)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_allclose(ours, _project_by_loop(positions, probabilities), atol=1e-5)


def _project_by_loop(positions, probabilities):
    atoms = np.asarray(ATOMS, np.float64)
    out, spacing = np.zeros(atoms.size), atoms[1] - atoms[0]
    for position, probability in zip(positions, probabilities, strict=True):
        place = (np.clip(position, atoms[0], atoms[-1]) - atoms[0]) / spacing
        low = int(np.floor(place))
        high = min(low + 1, atoms.size - 1)
        out[low] += probability * (1 - (place - low))
        out[high] += probability * (place - low)
    return out


def test_projection_keeps_mass_and_within_the_range_the_mean():
    rng = np.random.default_rng(2)
    positions = rng.uniform(-3, 5, 30).astype(np.float32)
    probabilities = rng.dirichlet(np.ones(30)).astype(np.float32)
    projected = np.asarray(
        categorical_project(jnp.asarray(positions), jnp.asarray(probabilities), ATOMS), np.float64
    )
    assert projected.sum() == pytest.approx(1.0, abs=1e-5)
    assert projected @ np.asarray(ATOMS) == pytest.approx(positions @ probabilities, abs=1e-5)


@pytest.mark.filterwarnings("ignore:Rlax categorical_cross_entropy:PendingDeprecationWarning")
@pytest.mark.parametrize("double", [False, True])
def test_categorical_losses_and_gradients_agree_with_rlax(double):
    b = batch()

    def ours(logits_tm1):
        def one(logits_tm1, a_tm1, r_t, discount_t, logits_t, selector):
            selector = selector if double else categorical_mean(logits_t, ATOMS)
            target = categorical_target(r_t, discount_t, logits_t, selector, ATOMS)
            return categorical_loss(logits_tm1[a_tm1], target)

        names = ("a_tm1", "r_t", "discount_t", "logits_t", "selector")
        return jax.vmap(one)(logits_tm1, *(jnp.asarray(b[name]) for name in names))

    def theirs(logits_tm1):
        def one(logits_tm1, a_tm1, r_t, discount_t, logits_t, selector):
            args = (ATOMS, logits_tm1, a_tm1, r_t, discount_t, ATOMS, logits_t)
            if double:
                return rlax.categorical_double_q_learning(*args, selector)
            return rlax.categorical_q_learning(*args)

        names = ("a_tm1", "r_t", "discount_t", "logits_t", "selector")
        return jax.vmap(one)(logits_tm1, *(jnp.asarray(b[name]) for name in names))

    logits = jnp.asarray(b["logits_tm1"])
    np.testing.assert_allclose(ours(logits), theirs(logits), rtol=1e-4)
    np.testing.assert_allclose(
        jax.grad(lambda x: ours(x).sum())(logits),
        jax.grad(lambda x: theirs(x).sum())(logits),
        atol=1e-5,
    )


@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_quantile_losses_and_gradients_agree_with_rlax(delta):
    b, fractions = batch(3, atoms=7), quantile_midpoints(7)
    names = ("a_tm1", "r_t", "discount_t", "selector", "logits_t")

    def ours(quantiles):
        def one(quantiles, a_tm1, r_t, discount_t, selector, quantiles_t):
            target = quantile_target(r_t, discount_t, quantiles_t, selector)
            return quantile_huber_loss(quantiles[a_tm1], fractions, target, jnp.float32(delta))

        return jax.vmap(one)(quantiles, *(jnp.asarray(b[name]) for name in names))

    def theirs(quantiles):
        def one(quantiles, a_tm1, r_t, discount_t, selector, quantiles_t):
            # Theirs takes actions as columns, and chooses by the mean of a distribution.
            return rlax.quantile_q_learning(
                quantiles.T, fractions, a_tm1, r_t, discount_t,
                jnp.broadcast_to(selector[None, :], (7, 4)), quantiles_t.T, delta,
            )  # fmt: skip

        # Their Huber loss is not over delta.
        return jax.vmap(one)(quantiles, *(jnp.asarray(b[name]) for name in names)) / delta

    quantiles = jnp.asarray(b["logits_tm1"])
    np.testing.assert_allclose(ours(quantiles), theirs(quantiles), rtol=1e-4)
    np.testing.assert_allclose(
        jax.grad(lambda x: ours(x).sum())(quantiles),
        jax.grad(lambda x: theirs(x).sum())(quantiles),
        atol=1e-5,
    )


# One state that pays a normal reward, of mean 0.4 and deviation 0.6, and goes on to itself: its
# return is normal, of mean 0.4 / (1 - g) and deviation 0.6 / sqrt(1 - g^2).
GAMMA, MEAN, DEVIATION = 0.5, 0.4, 0.6
RETURNS = stats.norm(MEAN / (1 - GAMMA), DEVIATION / np.sqrt(1 - GAMMA**2))


def descend(loss, start, *, steps, rate):
    """Descend by stochastic gradients with rewards drawn anew, the step length falling."""

    @jax.jit
    def run(key):
        def update(params, inputs):
            key, step = inputs
            rewards = MEAN + DEVIATION * jax.random.normal(key, (64,))
            grads = jax.grad(lambda p: jnp.mean(jax.vmap(loss, (None, 0))(p, rewards)))(params)
            fall = rate / (1.0 + 10.0 * step / steps)
            return params - fall * grads, None

        inputs = (jax.random.split(key, steps), jnp.arange(steps, dtype=jnp.float32))
        return jax.lax.scan(update, start, inputs)[0]

    return np.asarray(run(jax.random.key(0)))


def test_c51_learns_a_return_distribution_known_in_closed_form():
    atoms = jnp.linspace(-2.0, 3.6, 57)

    def loss(logits, r_t):
        target = categorical_target(r_t, jnp.float32(GAMMA), logits[None], jnp.zeros(1), atoms)
        return categorical_loss(logits, target)

    logits = descend(loss, jnp.zeros(57), steps=3_000, rate=8.0)
    learned = np.cumsum(jax.nn.softmax(jnp.asarray(logits)))
    # Projection spreads each value over two atoms, so the edges of cells are compared.
    edges = np.asarray(atoms) + 0.05
    assert np.abs(learned - RETURNS.cdf(edges)).max() < 0.03
    mean = float(categorical_mean(jnp.asarray(logits)[None], atoms)[0])
    assert mean == pytest.approx(RETURNS.mean(), abs=0.03)


def test_quantile_regression_learns_the_quantiles_known_in_closed_form():
    fractions = quantile_midpoints(15)

    def loss(quantiles, r_t):
        target = quantile_target(r_t, jnp.float32(GAMMA), quantiles[None], jnp.zeros(1))
        return quantile_huber_loss(quantiles, fractions, target, jnp.float32(0.02))

    learned = descend(loss, jnp.zeros(15), steps=3_000, rate=0.3)
    # A mixture of 15 atoms shifted by the reward: the ends are cut a little.
    np.testing.assert_allclose(learned, RETURNS.ppf(np.asarray(fractions)), atol=0.12)
    np.testing.assert_allclose(learned.mean(), RETURNS.mean(), atol=0.03)
