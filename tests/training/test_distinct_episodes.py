"""Evaluations count distinct episodes; with epsilon, episodes of deterministic games differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.envs import make_environment
from jaxdqn.monitoring.records import evaluation_record, few_distinct
from jaxdqn.training.episode_digest import add_step, empty_digests
from jaxdqn.training.evaluation import EvalInfo, make_evaluator
from jaxdqn.types import ActInfo, Agent
from tests.toys import quick_jit

STEPS = 12


def starts_in(count, *, name="walk"):
    """Return a deterministic environment with ``count`` equally likely starts and 3 actions.

    The observation is the start; every action pays 1.
    """

    def reset(key):
        start = jax.random.randint(key, (), 0, count, jnp.int32)
        return start, start.astype(jnp.float32)[None]

    def step(key, state, action):
        return state, state.astype(jnp.float32)[None], 1.0, False

    return make_environment(reset, step, name=name, num_actions=3, max_episode_steps=STEPS)


def constant_agent():
    def act(key, params, carry, obs, first, exploration):
        q = jnp.tile(jnp.array([0.0, 1.0, 0.5]), (len(obs), 1))
        return jnp.zeros(len(obs), jnp.int32), carry, ActInfo(q=q, behaviour_prob=q[:, 0])

    return Agent(init=None, act=act, learn=None, initial_carry=lambda size: ())


def evaluated(environment, episodes=64, **options):
    evaluate = quick_jit(make_evaluator(constant_agent(), environment, episodes, **options))
    return jax.device_get(evaluate(None, jax.random.key(0)))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_episodes_that_differ_in_their_observations_only_are_different(count):
    # Returns, lengths and actions are equal in all episodes.
    record = evaluation_record(evaluated(starts_in(count)))
    assert record["distinct_episodes"] == count
    assert record["return_std"] == 0
    assert few_distinct(record) is (count < 64 / 10)


def test_random_actions_make_the_episodes_of_a_deterministic_environment_differ():
    info = evaluated(starts_in(1), epsilon=0.5)
    assert evaluation_record(info)["distinct_episodes"] > 60


def test_actions_are_random_with_the_probability_epsilon():
    def reset(key):
        return jnp.int32(0), jnp.zeros(1)

    def step(key, state, action):
        return state, jnp.zeros(1), (action != 1).astype(jnp.float32), False

    counting = make_environment(reset, step, name="count", num_actions=3, max_episode_steps=100)
    returns = evaluated(counting, 64, epsilon=0.3).returns
    # The greedy action is 1; a random one is another with probability 2/3.
    share, expected = np.mean(returns) / 100, 0.3 * 2 / 3
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 6_400)


def test_a_greedy_evaluation_draws_no_random_actions():
    environment, key = starts_in(2), jax.random.key(0)
    greedy, plain, random = (
        str(jax.make_jaxpr(make_evaluator(constant_agent(), environment, 4, **options))(None, key))
        for options in ({"epsilon": 0.0}, {}, {"epsilon": 0.1})
    )
    assert greedy == plain
    assert random.count("random_bits") > greedy.count("random_bits")


@pytest.mark.parametrize("epsilon", [-0.1, 1.5])
def test_epsilon_is_a_probability(epsilon):
    with pytest.raises(ValueError, match=f"epsilon={epsilon}: must be between 0 and 1"):
        make_evaluator(constant_agent(), starts_in(1), 4, epsilon=epsilon)


@pytest.mark.parametrize("dtype", [bool, np.float32, np.uint8, np.int32])
def test_every_word_and_the_order_of_steps_change_the_digest(dtype):
    def digest(steps):
        digests = empty_digests(1)
        for obs, action, reward in steps:
            digests = add_step(
                digests,
                jnp.asarray(obs, dtype)[None],
                jnp.array([action], jnp.int32),
                jnp.array([reward], jnp.float32),
            )
        return int(digests[0])

    zeros = np.zeros((2, 3))
    base = [(zeros, 0, 0.0), (zeros, 1, 0.0)]
    variants = [base, base[::-1], base[:1], [(zeros, 0, 1.0), base[1]], [base[0], (zeros, 2, 0.0)]]
    for place in np.ndindex(2, 3):
        changed = zeros.copy()
        changed[place] = 1
        variants.append([(changed, 0, 0.0), base[1]])
    assert len({digest(steps) for steps in variants}) == len(variants)


def test_learners_of_a_population_have_their_own_count():
    returns = np.zeros((2, 4))
    digests = np.array([[1, 1, 1, 1], [1, 2, 3, 3]])
    record = evaluation_record(EvalInfo(returns, np.ones((2, 4), int), digests))
    assert record["learners_distinct_episodes"] == [1, 3]
    assert record["distinct_episodes"] == 4
