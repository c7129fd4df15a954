"""Target networks: the time of replacement, and the distance of Polyak updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.agent.target_update import periodic_update, polyak_update

PARAMS = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


@pytest.mark.parametrize("steps_per_iteration", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("period", [1, 4, 5])
def test_target_is_replaced_on_every_period_th_gradient_step(steps_per_iteration, period):
    def gradient_step(carry, _):
        step, target, since = carry
        step = step + 1
        # The parameter is the number of the step, so the target shows when it was copied.
        target, since = periodic_update(step, target, since, period)
        return (step, target, since), target

    @jax.jit
    def iteration(carry):
        return jax.lax.scan(gradient_step, carry, None, length=steps_per_iteration)

    carry = (jnp.float32(0), jnp.float32(0), jnp.int32(0))
    targets = []
    for _ in range(6):
        carry, iteration_targets = iteration(carry)
        targets.extend(iteration_targets.tolist())
    steps = np.arange(1, len(targets) + 1)
    np.testing.assert_array_equal(targets, steps // period * period)
    assert carry[2] == steps[-1] % period
    assert carry[2].dtype == jnp.int32


def test_replacement_copies_all_leaves_in_the_same_step():
    target, since = periodic_update(PARAMS, ZEROS, jnp.int32(0), 2)
    jax.tree.map(np.testing.assert_array_equal, target, ZEROS)
    target, since = periodic_update(PARAMS, target, since, 2)
    jax.tree.map(np.testing.assert_array_equal, target, PARAMS)
    assert since == 0


def test_replacement_has_no_conditional():
    jaxpr = jax.make_jaxpr(lambda *state: periodic_update(*state, 2))(PARAMS, ZEROS, jnp.int32(0))
    assert "cond" not in str(jaxpr)


def test_polyak_update_agrees_with_a_loop_and_with_the_closed_form():
    tau, steps = 0.1, 25
    update = jax.jit(polyak_update)
    target, by_hand = ZEROS, {"w": np.zeros(2), "b": np.zeros(())}
    for _ in range(steps):
        target = update(PARAMS, target, jnp.float32(tau))
        by_hand = {n: (1 - tau) * by_hand[n] + tau * np.asarray(PARAMS[n]) for n in by_hand}
    for name in target:
        np.testing.assert_allclose(target[name], by_hand[name], rtol=1e-5)
        closed = (1 - (1 - tau) ** steps) * np.asarray(PARAMS[name])
        np.testing.assert_allclose(target[name], closed, rtol=1e-5)


def test_polyak_update_with_tau_one_copies():
    jax.tree.map(
        np.testing.assert_array_equal, polyak_update(PARAMS, ZEROS, jnp.float32(1)), PARAMS
    )


def test_polyak_update_can_be_vmapped_over_tau():
    taus = jnp.array([0.0, 0.25, 1.0])
    targets = jax.vmap(polyak_update, in_axes=(None, None, 0))(PARAMS, ZEROS, taus)
    np.testing.assert_allclose(targets["b"], [0.0, 0.75, 3.0])
