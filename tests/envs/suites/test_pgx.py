"""Pgx: the same rows as its own functions give."""

import jax
import numpy as np
import pytest

import jaxdqn
from jaxdqn.envs.suites.pgx import source
from tests.envs.suites.by_hand import ByHand, compare, random_actions
from tests.toys import quick_jit

pgx = pytest.importorskip("pgx", reason="the extra pgx is not installed")


def by_hand(env):
    def reset(key):
        state = env.init(key)
        return state, state.observation

    def step(key, state, action):
        state = env.step(state, action, key)
        return state, state.observation, state.rewards[0], state.terminated, state.truncated

    return ByHand(reset, step, np.asarray)


@pytest.mark.slow
def test_rows_are_those_of_the_suite_stepped_by_hand():
    environment = jaxdqn.make_env("pgx:2048", masks=False)
    assert environment.spec.max_episode_steps is None
    assert environment.spec.arguments == ("masks=False",)
    ends = compare(environment, by_hand(pgx.make("2048")), random_actions(4, 80))
    assert ends.terminated > 3
    assert ends.truncated == 0
    assert ends.rewards.min() == -1, "an illegal action ends the game with a penalty"
    assert ends.rewards.max() >= 4


@pytest.mark.slow
def test_arguments_are_those_of_the_game_and_a_time_limit():
    arguments = {"sticky_action_prob": 0.0, "use_minimal_action_set": False}
    environment = jaxdqn.make_env("pgx:minatar-breakout", max_episode_steps=5, **arguments)
    assert environment.spec.num_actions == 6
    assert environment.spec.max_episode_steps == 5
    texts = ("max_episode_steps=5", "sticky_action_prob=0.0", "use_minimal_action_set=False")
    assert environment.spec.arguments == texts
    hand, limit = by_hand(type(pgx.make("minatar-breakout"))(**arguments)), 5

    def step(key, counted, action):
        state, obs, reward, terminated, _ = hand.step(key, counted[0], action)
        return (state, counted[1] + 1), obs, reward, terminated, counted[1] + 1 >= limit

    def reset(key):
        state, obs = hand.reset(key)
        return (state, 0), obs

    counting = hand._replace(reset=reset, step=step)
    ends = compare(environment, counting, random_actions(6, 30))
    assert ends.truncated > 3


@pytest.mark.slow
def test_the_mask_is_that_of_the_game_also_under_a_time_limit():
    keys = jax.random.split(jax.random.key(1), 8)
    expected = quick_jit(jax.vmap(pgx.make("2048").init))(keys).legal_action_mask
    assert not expected.all()
    for arguments in ({}, {"max_episode_steps": 5}):
        assert source("2048", {**arguments, "masks": False}).legal is None
        game = source("2048", arguments)
        with_mask = jaxdqn.make_env("pgx:2048", **arguments)
        found = quick_jit(jax.vmap(with_mask.reset))(keys)[1].legal
        np.testing.assert_array_equal(found, expected)
        masks = quick_jit(jax.vmap(lambda key, game=game: game.legal(game.reset(key)[0])))(keys)
        np.testing.assert_array_equal(masks, expected)


@pytest.mark.parametrize(
    ("ident", "arguments", "message"),
    [
        ("2049", {}, "env='pgx:2049': must be pgx:ID, with ID a known environment; nearest: 2048"),
        ("tic_tac_toe", {}, "must be a game of one player, not 2: 2048, minatar-asterix"),
        ("2048", {"speed": 1}, "env_args='speed': must be an argument of pgx:2048; nearest: max_"),
        ("2048", {"max_episode_steps": 0}, "env_args='max_episode_steps=0': must be at least 1"),
    ],
)
def test_bad_input_is_one_line(ident, arguments, message):
    with pytest.raises(ValueError, match=r"^env") as caught:
        jaxdqn.make_env(f"pgx:{ident}", **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
