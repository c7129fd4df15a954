"""``make_environment``: from a plain reset and step to an environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.envs import make_environment
from jaxdqn.envs.base import with_autoreset
from tests.toys import quick_jit


def corridor_reset(key):
    """Start at a random cell of a corridor of six."""
    position = jax.random.randint(key, (), 0, 3)
    return {"position": position, "moves": 0}, jax.nn.one_hot(position, 6)


def corridor_step(key, state, action):
    """Walk left (0) or right (1); the right end is the goal."""
    position = jnp.clip(state["position"] + 2 * action - 1, 0, 5)
    at_goal = position == 5
    obs = jax.nn.one_hot(position, 6)
    reward = jnp.where(at_goal, 1.0, -0.1)
    return {"position": position, "moves": state["moves"] + 1}, obs, reward, at_goal


def clock_reset(key):
    return 0, jnp.int32(0)


def clock_step(key, time, action):
    """Count; action 1 ends the episode; the reward is the time, an int."""
    time = time + 1
    return time, time, time, action == 1


def clock(**kwargs):
    return make_environment(clock_reset, clock_step, name="clock", num_actions=2, **kwargs)


def rollout(env, key, actions):
    """Scan over ``actions``; return the first time step, and the step after each action."""

    def body(state, inputs):
        key, action = inputs
        return env.step(key, state, action)

    @quick_jit
    def run(key, actions):
        key_reset, key_steps = jax.random.split(key)
        state, first = env.reset(key_reset)
        keys = jax.random.split(key_steps, len(actions))
        return first, jax.lax.scan(body, state, (keys, actions))[1]

    return run(key, jnp.asarray(actions, jnp.int32))


def test_rows_of_a_hand_worked_episode():
    env = clock(max_episode_steps=3)
    #          truncated    reset at 4   terminated  reset at 6, terminated at the limit
    actions = [0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0]
    first, steps = rollout(env, jax.random.key(0), actions)
    assert (int(first.obs), float(first.reward), bool(first.first)) == (0, 0.0, True)
    assert not first.terminated
    assert not first.truncated
    np.testing.assert_array_equal(steps.obs, [1, 2, 3, 0, 1, 0, 1, 2, 3, 0, 1])
    np.testing.assert_array_equal(steps.reward, [1, 2, 3, 0, 1, 0, 1, 2, 3, 0, 1])
    np.testing.assert_array_equal(steps.first, [0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(steps.terminated, [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(steps.truncated, [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])


def test_without_a_limit_nothing_is_truncated():
    env = clock()
    _, steps = rollout(env, jax.random.key(0), [0] * 50 + [1, 0])
    assert env.spec.max_episode_steps is None
    assert not steps.truncated.any()
    np.testing.assert_array_equal(np.flatnonzero(steps.terminated), [50])
    np.testing.assert_array_equal(np.flatnonzero(steps.first), [51])


def test_time_step_dtypes_are_the_contract():
    env = clock(max_episode_steps=3)
    first, steps = rollout(env, jax.random.key(0), [0, 1, 0])
    for step in (first, steps):
        assert step.reward.dtype == jnp.float32
        assert step.terminated.dtype == step.truncated.dtype == step.first.dtype == jnp.bool_
        assert step.obs.dtype == env.spec.obs_dtype == jnp.int32
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(step))


def test_a_fifteen_line_environment_plugs_in_and_vmaps():
    env = make_environment(
        corridor_reset, corridor_step, name="corridor", num_actions=2, max_episode_steps=20
    )
    assert env.spec.obs_shape == (6,)
    state, first = quick_jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 16))
    starts = np.argmax(first.obs, axis=-1)
    assert len(set(starts.tolist())) > 1

    def body(state, key):
        return jax.vmap(env.step)(jax.random.split(key, 16), state, jnp.ones(16, jnp.int32))

    scan = quick_jit(lambda state, keys: jax.lax.scan(body, state, keys)[1])
    steps = scan(state, jax.random.split(jax.random.key(1), 12))
    # Each walks right from where it started, 5 - start steps.
    for column, start in enumerate(starts):
        end = 5 - start
        np.testing.assert_array_equal(
            steps.terminated[: end + 1, column], np.arange(1, end + 2) == end
        )
        assert np.argmax(steps.obs[end - 1, column]) == 5
        assert bool(steps.first[end, column])
        assert float(steps.reward[end, column]) == 0.0


def test_the_step_after_the_end_ignores_its_action_and_resets_by_its_key():
    env = make_environment(corridor_reset, corridor_step, name="corridor", num_actions=2)
    state, _ = quick_jit(env.reset)(jax.random.key(3))
    walk = quick_jit(env.step)
    for _ in range(5):
        state, step = walk(jax.random.key(4), state, jnp.int32(1))
        if step.terminated:
            break
    keys = jax.random.split(jax.random.key(5), 32)
    walk_each = quick_jit(jax.vmap(env.step, (0, None, None)))
    left, right = (walk_each(keys, state, jnp.int32(action)) for action in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, left, right)
    fresh_state, fresh = quick_jit(jax.vmap(env.reset))(keys)
    jax.tree.map(np.testing.assert_array_equal, left[0], fresh_state)
    np.testing.assert_array_equal(left[1].obs, fresh.obs)


def test_state_is_a_fixed_point_whatever_it_starts_from():
    def reset(key):
        state = {"int": 0, "to_float": 0, "flag": False, "numpy": np.int8(1), "key": key}
        return state, np.zeros(2, np.float32)

    def step(key, state, action):
        state = {
            "int": state["int"] + 1,
            "to_float": state["to_float"] * jnp.float32(0.5),
            "flag": action == 1,
            "numpy": state["numpy"],
            "key": jax.random.fold_in(state["key"], 1),
        }
        return state, jnp.ones(2), 1, False

    env = make_environment(reset, step, name="mixed", num_actions=2, max_episode_steps=2)
    state, _ = env.reset(jax.random.key(0))
    avals = jax.tree.map(jax.typeof, state)
    after = jax.eval_shape(env.step, jax.random.key(0), state, jnp.int32(0))[0]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), after) == (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), avals)
    )
    assert state.inner.inner["to_float"].dtype == jnp.float32
    _, steps = rollout(env, jax.random.key(0), [0, 0, 0, 0])
    np.testing.assert_array_equal(steps.truncated, [0, 1, 0, 0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_actions": 0}, "num_actions=0: must be"),
        ({"num_actions": 2.0}, r"num_actions=2\.0: must be"),
        ({"num_actions": True}, "num_actions=True: must be"),
        ({"max_episode_steps": 0}, "max_episode_steps=0: must be"),
        ({"max_episode_steps": -1}, "max_episode_steps=-1: must be"),
        ({"name": ""}, "name='': must be"),
    ],
)
def test_arguments_out_of_range_are_rejected(kwargs, message):
    arguments = {"name": "clock", "num_actions": 2, **kwargs}
    with pytest.raises(ValueError, match=message):
        make_environment(clock_reset, clock_step, **arguments)


@pytest.mark.parametrize(
    ("reset", "step", "message"),
    [
        (lambda key: 0, clock_step, "reset: must return a tuple of 2"),
        (lambda key: (0, {"a": 1}), clock_step, "reset: must return one array as observation"),
        (lambda key: (0, jnp.complex64(0)), clock_step, "reset: .* dtype float, bool or int"),
        (clock_reset, lambda key, s, a: (s, s, 0.0), "step: must return a tuple of 4"),
        (clock_reset, lambda key, s, a: ((s, s), 0, 0.0, False), "structure"),
        (clock_reset, lambda key, s, a: (s, jnp.zeros(3), 0.0, False), r"int32\[\], not float32"),
        (clock_reset, lambda key, s, a: (s, s, jnp.zeros(1), False), "reward of shape"),
        (clock_reset, lambda key, s, a: (s, s, 0.0, jnp.zeros(2, bool)), "terminated of shape"),
    ],
)
def test_functions_that_break_the_contract_are_rejected(reset, step, message):
    with pytest.raises(ValueError, match=message):
        make_environment(reset, step, name="broken", num_actions=2)


def test_a_step_may_report_truncation_itself():
    def step(key, time, action):
        time, obs, reward, terminated = clock_step(key, time, action)
        return time, obs, reward, terminated, time >= 2

    env = with_autoreset(clock_reset, step, name="clock", num_actions=2)
    _, steps = rollout(env, jax.random.key(0), [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(steps.truncated, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(steps.terminated, [0, 0, 0, 0, 1])
