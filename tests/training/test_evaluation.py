"""Evaluation counts exactly the complete first episode of each environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.envs import make_environment
from jaxdqn.training import evaluation
from jaxdqn.training.evaluation import make_evaluator, play_episode
from jaxdqn.types import ActInfo, Agent
from tests.toys import quick_jit

RIGHT = 1
SHORT, LONG = 2, 20


def draw_length(key):
    return jnp.where(jax.random.bernoulli(key), SHORT, LONG)


def short_or_long_environment():
    """Return an environment whose reset draws a length of 2 or 20; action RIGHT pays 1."""

    def reset(key):
        state = {"length": draw_length(key), "age": jnp.int32(0)}
        return state, jnp.ones(1)

    def step(key, state, action):
        state = {"length": state["length"], "age": state["age"] + 1}
        reward = (action == RIGHT).astype(jnp.float32)
        return state, jnp.ones(1), reward, state["age"] >= state["length"]

    return make_environment(reset, step, name="short-or-long", num_actions=3, max_episode_steps=50)


def agent_with(q_of):
    """Return an agent with Q-values ``q_of(params, obs)`` whose actions are always 0."""

    def act(key, params, carry, obs, first, exploration):
        q = q_of(params, obs)
        return jnp.zeros(len(obs), jnp.int32), carry, ActInfo(q=q, behaviour_prob=q[:, 0])

    return Agent(init=None, act=act, learn=None, initial_carry=lambda size: ())


def right_agent():
    return agent_with(
        lambda params, obs: jnp.tile(params * jnp.array([0.0, 1.0, 0.5]), (len(obs), 1))
    )


def first_lengths(key, episodes):
    """Return the lengths that the evaluator's resets draw."""
    key_begin, _ = jax.random.split(key)
    return np.asarray(quick_jit(jax.vmap(draw_length))(jax.random.split(key_begin, episodes)))


def test_each_environment_counts_exactly_its_first_episode_to_the_end():
    evaluate = quick_jit(make_evaluator(right_agent(), short_or_long_environment(), 64))
    key = jax.random.key(3)
    info = evaluate(jnp.float32(1), key)
    expected = first_lengths(key, 64)
    assert set(expected) == {SHORT, LONG}
    np.testing.assert_array_equal(info.lengths, expected)
    np.testing.assert_array_equal(info.returns, expected.astype(np.float32))


def test_short_episodes_weigh_no_more_than_long_ones():
    # The first 400 episodes to finish would have a mean length near 2, not 11.
    evaluate = quick_jit(make_evaluator(right_agent(), short_or_long_environment(), 400))
    lengths = evaluate(jnp.float32(1), jax.random.key(0)).lengths
    standard_error = (LONG - SHORT) / 2 / 400**0.5
    assert abs(np.mean(lengths) - (LONG + SHORT) / 2) < 4 * standard_error


def test_actions_have_the_largest_q_and_are_not_those_of_the_agent():
    evaluate = quick_jit(make_evaluator(right_agent(), short_or_long_environment(), 8))
    assert np.all(evaluate(jnp.float32(1), jax.random.key(0)).returns >= SHORT)
    assert np.all(evaluate(jnp.float32(-1), jax.random.key(0)).returns == 0)


def test_an_episode_without_a_time_limit_is_cut(monkeypatch):
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 7)
    endless = make_environment(
        lambda key: (jnp.int32(0), jnp.ones(1)),
        lambda key, state, action: (state, jnp.ones(1), 1.0, False),
        name="endless",
        num_actions=3,
    )
    info = make_evaluator(right_agent(), endless, 3)(jnp.float32(1), jax.random.key(0))
    np.testing.assert_array_equal(info.lengths, [7, 7, 7])
    np.testing.assert_array_equal(info.returns, [7.0, 7.0, 7.0])


def test_an_episode_ends_at_the_time_limit_of_the_environment():
    clock = make_environment(
        lambda key: (jnp.int32(0), jnp.ones(1)),
        lambda key, state, action: (state, jnp.ones(1), 1.0, False),
        name="clock",
        num_actions=3,
        max_episode_steps=9,
    )
    info = make_evaluator(right_agent(), clock, 2)(jnp.float32(1), jax.random.key(0))
    np.testing.assert_array_equal(info.lengths, [9, 9])


def test_an_evaluation_vmapped_over_parameters_equals_separate_evaluations():
    evaluate = make_evaluator(right_agent(), short_or_long_environment(), 16)
    params = jnp.array([1.0, -1.0, 2.0])
    together = jax.jit(jax.vmap(evaluate, in_axes=(0, None)))(params, jax.random.key(1))
    separate = [jax.jit(evaluate)(member, jax.random.key(1)) for member in params]
    for index, info in enumerate(separate):
        np.testing.assert_array_equal(together.returns[index], info.returns)
        np.testing.assert_array_equal(together.lengths[index], info.lengths)


def test_stacked_frames_are_zero_before_the_start_of_the_episode():
    # The observation at age t is t + 1. The oldest of 3 frames is then t - 1, or 0 at the start.
    length = 6
    counting = make_environment(
        lambda key: (jnp.int32(0), jnp.ones(1)),
        lambda key, age, action: (
            age + 1,
            jnp.full(1, age + 2, jnp.float32),
            (action == jnp.maximum(age - 1, 0)).astype(jnp.float32),
            age + 1 >= length,
        ),
        name="counting",
        num_actions=length,
    )
    agent = agent_with(lambda params, obs: jax.nn.one_hot(obs[:, 0, 0].astype(int), length))
    info = make_evaluator(agent, counting, 2, frame_stack=3)(None, jax.random.key(0))
    np.testing.assert_array_equal(info.returns, [length, length])


def test_a_played_episode_has_all_states_from_the_first_to_the_last():
    environment = short_or_long_environment()
    states, rewards = play_episode(right_agent(), environment, jnp.float32(1), jax.random.key(5))
    ages = [int(state.inner.inner["age"]) for state in states]
    assert ages == list(range(len(states)))
    assert ages[-1] == int(states[0].inner.inner["length"])
    assert rewards == [0.0] + [1.0] * ages[-1]


@pytest.mark.parametrize("argument", ["episodes", "frame_stack"])
def test_a_count_below_one_is_rejected(argument):
    arguments = {"episodes": 4, "frame_stack": 1, argument: 0}
    with pytest.raises(ValueError, match=f"{argument}=0: must be"):
        make_evaluator(
            right_agent(),
            short_or_long_environment(),
            arguments["episodes"],
            frame_stack=arguments["frame_stack"],
        )
