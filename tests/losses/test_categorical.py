"""C51: against rlax, a NumPy loop, and a process with a known return distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.losses import (
    categorical_clipped,
    categorical_loss,
    categorical_mean,
    categorical_project,
    categorical_target,
)
from tests.losses.distributions import GAMMA, RETURNS, batch, descend
from tests.toys import quick_jit

rlax = pytest.importorskip("rlax")

ATOMS = jnp.linspace(-3.0, 5.0, 17)


def test_projection_agrees_with_rlax_and_with_a_loop():
    rng = np.random.default_rng(1)
    project = quick_jit(lambda *args: categorical_project(*args, ATOMS))
    oracle = quick_jit(lambda *args: rlax.categorical_l2_project(*args, ATOMS))
    for _ in range(20):
        positions = np.sort(rng.normal(size=9) * 5).astype(np.float32)
        probabilities = rng.dirichlet(np.ones(9)).astype(np.float32)
        ours = project(positions, probabilities)
        theirs = oracle(positions, probabilities)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_allclose(ours, _project_by_loop(positions, probabilities), atol=1e-5)


def _project_by_loop(positions, probabilities):
    atoms = np.asarray(ATOMS, np.float64)
    out, spacing = np.zeros(atoms.size), atoms[1] - atoms[0]
    for position, probability in zip(positions, probabilities, strict=True):
        cell = (np.clip(position, atoms[0], atoms[-1]) - atoms[0]) / spacing
        low = int(np.floor(cell))
        high = min(low + 1, atoms.size - 1)
        out[low] += probability * (1 - (cell - low))
        out[high] += probability * (cell - low)
    return out


def test_projection_keeps_the_mass_and_inside_the_range_the_mean():
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
    np.testing.assert_allclose(quick_jit(ours)(logits), quick_jit(theirs)(logits), rtol=1e-4)
    np.testing.assert_allclose(
        quick_jit(jax.grad(lambda x: ours(x).sum()))(logits),
        quick_jit(jax.grad(lambda x: theirs(x).sum()))(logits),
        atol=1e-5,
    )


def test_c51_learns_a_return_distribution_known_in_closed_form():
    atoms = jnp.linspace(-2.0, 3.6, 57)

    def loss(logits, r_t):
        target = categorical_target(r_t, jnp.float32(GAMMA), logits[None], jnp.zeros(1), atoms)
        return categorical_loss(logits, target)

    logits = descend(loss, jnp.zeros(57), steps=3_000, rate=8.0)
    learned = np.cumsum(jax.nn.softmax(jnp.asarray(logits)))
    # Projection spreads each value over two atoms, so compare at the edges between atoms.
    edges = np.asarray(atoms) + 0.05
    assert np.abs(learned - RETURNS.cdf(edges)).max() < 0.03
    mean = float(categorical_mean(jnp.asarray(logits)[None], atoms)[0])
    assert mean == pytest.approx(RETURNS.mean(), abs=0.03)


def test_the_clipped_probability_is_that_of_the_targets_outside_the_atoms():
    atoms, logits = jnp.linspace(-1.0, 1.0, 5), jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.25, 0.15]]))

    def clipped(r_t, discount_t, logits=logits):
        selector = jnp.zeros(1)
        return categorical_clipped(
            jnp.float32(r_t), jnp.float32(discount_t), logits, selector, atoms
        )

    # Targets -0.5, 0, 0.5, 1 and 1.5, of which only the last is outside; an end is inside.
    np.testing.assert_allclose(clipped(0.5, 1.0), 0.15, rtol=1e-6)
    np.testing.assert_allclose(clipped(-1.5, 1.0), 0.1 + 0.2 + 0.3, rtol=1e-6)
    assert clipped(0.0, 1.0) == clipped(0.1, 0.9) == clipped(1.0, 0.0) == 0.0
    np.testing.assert_allclose(clipped(1.2, 0.0, jnp.full_like(logits, jnp.nan)), 1.0, rtol=1e-6)
