"""Masks of a user's environment: their time, their shape, and sticky actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.envs import make_environment, with_sticky_actions
from jaxdqn.envs.autoreset import advance_of
from tests.toys import cycle, quick_jit

ACTIONS, LIMIT = 3, 5


def turns(*, limit=LIMIT, legal=None, end=4):
    """Return an environment whose state counts its steps; action ``state % 3`` is illegal."""

    def reset(key):
        return jnp.int32(0), jnp.zeros(1)

    def step(key, state, action):
        state = state + 1
        return state, jnp.full(1, state, jnp.float32), action.astype(jnp.float32), state >= end

    def allowed(state):
        return (jnp.arange(ACTIONS) != state % ACTIONS) & (state < end)

    return make_environment(
        reset, step, name="turns", num_actions=ACTIONS, max_episode_steps=limit,
        legal=legal or allowed,
    )  # fmt: skip


@pytest.mark.parametrize("limit", [3, None])
def test_a_mask_is_that_of_the_state_observed_after_resets_too(limit):
    environment = turns(limit=limit)
    assert environment.spec.masked
    state, timestep = environment.reset(jax.random.key(0))
    step = quick_jit(environment.step)
    seen = []
    for _ in range(12):
        count = int(timestep.obs[0])
        seen.append((count, bool(timestep.first)))
        expected = [count < 4 and action != count % 3 for action in range(ACTIONS)]
        np.testing.assert_array_equal(timestep.legal, expected)
        state, timestep = step(jax.random.key(0), state, jnp.int32(0))
    length = limit or 4
    assert seen[: length + 2] == [*((n, n == 0) for n in range(length + 1)), (0, True)]


def test_the_step_without_reset_has_the_mask_too():
    environment = turns()
    state, _ = environment.reset(jax.random.key(0))
    _, timestep = advance_of(environment)(jax.random.key(0), state, jnp.int32(0))
    np.testing.assert_array_equal(timestep.legal, [True, False, True])


def test_without_masks_time_steps_have_none():
    environment = cycle([1.0, 2.0], limit=3)
    assert not environment.spec.masked
    assert environment.reset(jax.random.key(0))[1].legal == ()


@pytest.mark.parametrize(
    ("legal", "message"),
    [
        (lambda state: jnp.ones(2, bool), r"legal: must return a mask of shape \[3\]"),
        (lambda state: jnp.ones(3), r"and dtype bool, not .*float32"),
        (lambda state: (jnp.ones(3, bool),), r"legal: must return a mask"),
        (True, "legal=True: must be a function state -> mask, or None"),
    ],
)
@pytest.mark.parametrize("limit", [5, None])
def test_a_mask_of_another_shape_or_kind_is_rejected(legal, message, limit):
    with pytest.raises(ValueError, match=message):
        turns(legal=legal, limit=limit)


def test_a_sticky_action_is_not_repeated_where_it_is_illegal():
    environment = with_sticky_actions(turns(limit=None, end=100), 0.99)
    state, timestep = environment.reset(jax.random.key(0))
    step = quick_jit(environment.step)
    previous, repeated = 0, 0
    for time in range(60):
        legal = np.asarray(timestep.legal)
        action = int(np.flatnonzero(legal & (np.arange(ACTIONS) != previous))[0])
        state, timestep = step(jax.random.key(time), state, jnp.int32(action))
        executed = int(timestep.reward)  # the environment pays the action that it was given
        assert legal[executed]
        assert executed == action or (executed == previous and legal[previous])
        repeated += executed == previous
        previous = executed
    assert repeated > 15
