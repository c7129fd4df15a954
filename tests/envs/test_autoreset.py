"""Resets from a pool, and evaluations without resets."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.config.config import Config, replace
from jaxdqn.envs import make_environment, with_sticky_actions
from jaxdqn.envs.autoreset import advance_of, fill_pool, step_from_pool
from jaxdqn.replay.ring import _FIRST
from jaxdqn.training.evaluation import make_evaluator
from jaxdqn.training.trainer import make_trainer
from tests.toys import cycle, quick_jit, tiny
from tests.trees import assert_identical

CONFIG = tiny(num_envs=4, rollout_length=8, warmup_rows=64, total_rows=400)
ACTIONS = jnp.zeros(4, jnp.int32)
POOLED = replace(CONFIG, reset="pooled", reset_pool=3)


@cache
def lottery(limit=3):
    """Return an environment whose episodes start with a random number, which they then observe."""

    def reset(key):
        number = jax.random.randint(key, (), 0, 2**24).astype(jnp.float32)
        return number, number[None]

    def step(key, number, action):
        return number, number[None], 1.0, False

    return make_environment(reset, step, name="lottery", num_actions=2, max_episode_steps=limit)


def stepped(environment, *arguments):
    """Step without an operation compiled for each line."""
    return quick_jit(lambda *rest: step_from_pool(environment, *rest, ACTIONS))(*arguments)


def several(environment, envs=4):
    key = jax.random.key(1)
    state, timestep = jax.vmap(environment.reset)(jax.random.split(key, envs))
    return jax.random.split(jax.random.key(2), envs), state, timestep


def ended(timestep, *which):
    ends = jnp.asarray([index in which for index in range(len(timestep.first))])
    return timestep._replace(truncated=ends)


def numbers(tree):
    return np.asarray(tree.obs)[:, 0]


def test_environments_whose_episode_has_ended_take_the_next_resets_in_order():
    environment = lottery()
    keys, state, timestep = several(environment)
    pool = fill_pool(environment, jax.random.key(5), 3)
    before, fresh = numbers(timestep), numbers(pool.timestep)
    state, after, pool = stepped(environment, pool, keys, state, ended(timestep, 1, 3))
    assert pool.used == 2
    np.testing.assert_array_equal(after.first, [False, True, False, True])
    np.testing.assert_array_equal(numbers(after), [before[0], fresh[0], before[2], fresh[1]])
    np.testing.assert_array_equal(after.reward, [1, 0, 1, 0])
    assert not (after.terminated | after.truncated).any()
    state, again, pool = stepped(environment, pool, keys, state, ended(after, 0))
    assert pool.used == 3
    np.testing.assert_array_equal(numbers(again), [fresh[2], fresh[0], before[2], fresh[1]])


def test_a_pool_with_too_few_resets_is_filled_again():
    environment = lottery()
    keys, state, timestep = several(environment)
    pool = fill_pool(environment, jax.random.key(5), 3)._replace(used=jnp.int32(1))
    old, filled = numbers(pool.timestep), fill_pool(environment, keys[0], 3)
    _, after, pool = stepped(environment, pool, keys, state, ended(timestep, 0, 2, 3))
    assert pool.used == 3
    np.testing.assert_array_equal(numbers(after)[[0, 2, 3]], numbers(filled.timestep))
    np.testing.assert_array_equal(numbers(pool.timestep), numbers(filled.timestep))
    assert numbers(after)[1] == numbers(timestep)[1]
    assert not set(numbers(after)) & set(old)


def test_a_step_that_needs_more_than_a_pool_makes_a_reset_for_each():
    environment = lottery()
    keys, state, timestep = several(environment)
    pool = fill_pool(environment, jax.random.key(5), 2)._replace(used=jnp.int32(1))
    _, after, kept = stepped(environment, pool, keys, state, ended(timestep, 0, 2, 3))
    assert_identical(kept, pool)
    own = numbers(jax.vmap(environment.reset)(keys)[1])
    np.testing.assert_array_equal(numbers(after)[[0, 2, 3]], own[[0, 2, 3]])
    assert numbers(after)[1] == numbers(timestep)[1]
    assert not set(numbers(after)) & set(numbers(pool.timestep))


@pytest.mark.slow
def test_learners_of_a_population_have_their_own_pools_and_conditions():
    environment = lottery()

    def step(key, ends):
        keys, state, timestep = several(environment)
        pool = fill_pool(environment, key, 2)
        timestep = timestep._replace(truncated=ends)
        return step_from_pool(environment, pool, keys, state, timestep, ACTIONS)

    learners = jax.random.split(jax.random.key(3), 3)
    ends = jnp.array([[0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1]], bool)
    both, one_by_one = quick_jit(jax.vmap(step))(learners, ends), quick_jit(step)
    for index in range(3):
        one = one_by_one(learners[index], ends[index])
        assert_identical(jax.tree.map(lambda leaf, i=index: leaf[i], both), one)
    np.testing.assert_array_equal(both[2].used, [1, 0, 2])


def stored(config, environment, iterations=8):
    trainer = make_trainer(config, environment=environment)
    state = quick_jit(trainer.init)(jax.random.key(0))
    return quick_jit(trainer.chunk(iterations))(state)[0]


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_no_reset_is_used_twice_and_episodes_are_those_of_the_contract(size):
    state = stored(replace(POOLED, reset_pool=size, replay_capacity=1024), lottery())
    rows = state.replay.ring.rows
    obs, first = np.asarray(rows.obs)[..., 0], np.asarray(rows.flags) & _FIRST > 0  # [T, E]
    count = 64 // 4 + 8 * 8
    obs, first = obs[:count], first[:count]
    # Episodes of three steps: four observations of one number.
    np.testing.assert_array_equal(first, (np.arange(count) % 4 == 0)[:, None].repeat(4, 1))
    np.testing.assert_array_equal(obs, obs[::4].repeat(4, 0))
    starts = obs[first]
    assert len(set(starts)) == len(starts) == count
    # Uniform on [0, 2^24): the mean of n has a standard deviation of 0.29 / sqrt(n).
    assert abs(np.mean(starts / 2**24) - 0.5) < 4 * 0.29 / np.sqrt(len(starts))


@pytest.mark.slow
def test_a_run_whose_resets_are_all_equal_is_that_of_every_step_bitwise():
    environment = cycle([0.0, 1.0, 2.0], limit=5)
    expected = stored(CONFIG, environment)
    assert_identical(stored(POOLED, environment), expected)


@pytest.mark.slow
def test_only_as_many_resets_as_the_pool_holds_are_computed():
    counted = []

    def reset(key):
        jax.debug.callback(lambda _: counted.append(1), jax.random.key_data(key))
        return jnp.int32(0), jnp.zeros(2)

    def step(key, state, action):
        return state, jnp.zeros(2), 0.0, False

    environment = make_environment(
        reset, step, name="counted", num_actions=2, max_episode_steps=10_000
    )
    state = stored(POOLED, environment)
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(counted) == 4 + (2 + 8) * 3  # at the start, then in each iteration


def test_the_default_pool_has_a_reset_for_16_rows_or_for_four_environments():
    config = tiny(num_envs=8, rollout_length=8, warmup_rows=64, reset="pooled", batch_size=16)
    assert config.resets_in_pool == 4
    assert replace(config, devices=2).resets_in_pool == 2
    assert tiny(num_envs=8, reset="pooled").resets_in_pool == 2
    assert replace(config, reset_pool=3).resets_in_pool == 3
    with pytest.raises(ValueError, match="reset_pool=3: must be None unless reset='pooled'"):
        Config(reset_pool=3)


def test_an_environment_with_one_function_for_step_and_reset_is_rejected():
    environment = lottery()
    closed = environment._replace(step=lambda *args: environment.step(*args))
    assert advance_of(closed) is None
    with pytest.raises(ValueError, match="reset='pooled': must be 'every-step' for an env"):
        make_trainer(POOLED, environment=closed)


def ragged():
    """Return an environment whose episodes end at random, with random rewards."""

    def reset(key):
        return jnp.int32(0), jax.random.uniform(key, (2,))

    def step(key, state, action):
        draws = jax.random.uniform(key, (4,))
        return state + 1, draws[:2], draws[2], draws[3] < 0.2

    return make_environment(reset, step, name="ragged", num_actions=2, max_episode_steps=9)


@pytest.mark.slow
def test_evaluations_without_resets_are_those_with_resets():
    environment = ragged()
    closed = environment._replace(step=lambda *args: environment.step(*args))
    trainer = make_trainer(CONFIG, environment=environment)
    params = quick_jit(trainer.init)(jax.random.key(0)).agent.params
    found, expected = (
        quick_jit(make_evaluator(trainer.agent, each, 16))(params, jax.random.key(7))
        for each in (environment, closed)
    )
    assert len(set(np.asarray(found.lengths))) > 3
    assert_identical(found, expected)


def test_sticky_actions_keep_the_step_without_a_reset():
    environment = with_sticky_actions(ragged(), 0.3)
    closed = environment._replace(step=lambda *args: environment.step(*args))
    trainer = make_trainer(CONFIG, environment=environment)
    params = quick_jit(trainer.init)(jax.random.key(0)).agent.params
    found, expected = (
        quick_jit(make_evaluator(trainer.agent, each, 8))(params, jax.random.key(7))
        for each in (environment, closed)
    )
    assert advance_of(environment) is not None
    assert_identical(found, expected)


def test_an_evaluation_computes_no_reset_while_it_plays():
    counted = []

    def reset(key):
        jax.debug.callback(lambda _: counted.append(1), jax.random.key_data(key))
        return jnp.int32(0), jnp.zeros(2)

    def step(key, state, action):
        return state, jnp.zeros(2), 1.0, False

    environment = make_environment(reset, step, name="counted", num_actions=2, max_episode_steps=9)
    trainer = make_trainer(CONFIG, environment=environment)
    params = quick_jit(trainer.init)(jax.random.key(0)).agent.params
    jax.effects_barrier()
    counted.clear()
    info = quick_jit(make_evaluator(trainer.agent, environment, 5))(params, jax.random.key(0))
    np.testing.assert_array_equal(info.returns, np.full(5, 9.0))
    jax.effects_barrier()
    assert len(counted) == 5
