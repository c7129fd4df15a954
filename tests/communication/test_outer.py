"""The outer optimiser of periodic averaging, by hand and against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdqn.communication.outer import OuterState, outer_step, with_outer_state
from jaxdqn.config.config import replace
from tests.communication.test_averaging import DEVICES, averaged, doubling
from tests.toys import quick_jit, tiny


def test_a_step_worked_by_hand():
    # delta = 10 - 8 = 2; velocity = 0.5 * 4 + 2 = 4; 10 - 0.1 (2 + 0.5 * 4) = 9.6.
    state = OuterState(jnp.float32(10), jnp.float32(4))
    params, state = outer_step(state, jnp.float32(8), learning_rate=0.1, momentum=0.5)
    np.testing.assert_allclose([params, *state], [9.6, 9.6, 4.0], rtol=1e-6)


def test_steps_are_those_of_nesterov_momentum_on_the_mean_change():
    rng = np.random.default_rng(0)
    start = {"a": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "b": jnp.ones(4)}
    outer = OuterState(start, jax.tree.map(jnp.zeros_like, start))
    sgd = optax.sgd(0.7, momentum=0.9, nesterov=True)
    theirs, sgd_state = start, sgd.init(start)
    for _ in range(5):
        change = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), start)
        mean = jax.tree.map(jnp.subtract, outer.anchor, change)
        ours, outer = outer_step(outer, mean, learning_rate=0.7, momentum=0.9)
        updates, sgd_state = sgd.update(change, sgd_state)
        theirs = optax.apply_updates(theirs, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


def test_a_learning_rate_of_one_without_momentum_is_plain_averaging():
    state = OuterState(jnp.float32(3), jnp.float32(0))
    for mean in (2.0, 5.0):
        params, state = outer_step(state, jnp.float32(mean), learning_rate=1.0, momentum=0.0)
        assert float(params) == mean


def test_gradient_steps_leave_the_outer_state():
    optimizer = with_outer_state(lambda hyper: optax.sgd(0.5))(None)
    state = optimizer.init(jnp.ones(3))
    updates, after = optimizer.update(jnp.ones(3), state, jnp.ones(3))
    np.testing.assert_allclose(updates, -0.5)
    np.testing.assert_array_equal(after.outer.anchor, np.ones(3))
    np.testing.assert_array_equal(after.outer.momentum, np.zeros(3))


def by_hand(steps, every, rate, momentum):
    """Compute two replicas of one parameter, initially 1, of which device 1 doubles its own."""
    params, anchor, velocity = np.ones(2), 1.0, 0.0
    for step in range(1, steps + 1):
        params = params * np.array([1, 2])
        if step % every == 0:
            delta = anchor - params.mean()
            velocity = momentum * velocity + delta
            anchor = anchor - rate * (delta + momentum * velocity)
            params = np.full(2, anchor)
    return params, velocity


def test_replicas_follow_the_computation_by_hand():
    config = tiny(
        devices=DEVICES, gradient_steps=4, average_every=2, target_period=4,
        average_moments=True, outer_optimizer="nesterov", outer_learning_rate=0.5,
        outer_momentum=0.25,
    )  # fmt: skip
    trainer = averaged(config, doubling)
    start = quick_jit(trainer.init)(jax.random.key(0))
    end, _ = quick_jit(trainer.chunk(2))(start)
    factors, velocity = by_hand(8, 2, 0.5, 0.25)
    leaves = [jax.tree.leaves(tree) for tree in (
        start.agent.params, end.agent.params, end.agent.target_params, *end.agent.opt_state.outer,
    )]  # fmt: skip
    for first, params, target, anchor, momentum in zip(*leaves, strict=True):
        np.testing.assert_array_equal(params[0], params[1])
        np.testing.assert_array_equal(params, target)
        np.testing.assert_array_equal(params, anchor)
        np.testing.assert_allclose(params[0], factors[0] * first[0], rtol=1e-5)
        np.testing.assert_allclose(momentum[0], velocity * first[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outer_optimizer": "nesterov"}, "outer_optimizer='nesterov': must be none"),
        ({"outer_learning_rate": 0.5, "average_every": 4, "target_period": 4},
         "outer_learning_rate=0.5: must be 0.7 unless outer_optimizer='nesterov'"),
        ({"model_devices": 2, "outer_optimizer": "nesterov"}, "none with model_devices above 1"),
        ({"model_devices": 2, "optimizer": "muon"}, "optimizer='muon': must be adam"),
        ({"devices": 1, "outer_optimizer": "nesterov"}, "without data-parallel replicas"),
    ],
)  # fmt: skip
def test_an_outer_optimiser_without_averaging_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny(), **{"devices": 2, **fields})
