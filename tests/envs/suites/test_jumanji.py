"""Jumanji: the same rows as its own functions give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdqn
from jaxdqn.envs.suites.adapter import as_written
from jaxdqn.envs.suites.jumanji import joint_mask, source
from tests.envs.suites.by_hand import ByHand, compare, one_hot, random_actions
from tests.toys import quick_jit

jumanji = pytest.importorskip("jumanji", reason="the extra jumanji is not installed")


def by_hand(env, expected, *, limit=None, convert=lambda action: action):
    """Return the functions of an environment; a discount of 0 at its time limit is a truncation."""

    def reset(key):
        state, timestep = env.reset(key)
        return state, timestep.observation

    def step(key, state, action):
        state, timestep = env.step(state, convert(action))
        last, at_limit = timestep.last(), np.bool_(False)
        if limit is not None:
            at_limit = (state.step_count >= limit) & ~_lost(state)
        return state, timestep.observation, timestep.reward, last & ~at_limit, last & at_limit

    return ByHand(reset, step, expected)


def _lost(state):
    """Return whether a game of Snake would end without its time limit: its head left the board."""
    row, column = state.head_position.row, state.head_position.col
    size = state.body_state.shape[0]
    outside = (row < 0) | (column < 0) | (row >= size) | (column >= size)
    return outside | (state.body_state[row, column] < state.length)


def test_rows_of_game_2048_are_those_of_the_suite_stepped_by_hand():
    environment = jaxdqn.make_env("jumanji:Game2048-v1", board_size=2)
    assert environment.spec.arguments == ("board_size=2",)
    hand = by_hand(jumanji.make("Game2048-v1", board_size=2), lambda obs: one_hot(obs.board, 6))
    ends = compare(environment, hand, random_actions(4, 100))
    assert ends.terminated > 3
    assert ends.truncated == 0
    assert ends.rewards.max() >= 8


def test_an_end_at_the_time_limit_is_a_truncation_and_fields_are_flattened_in_order():
    arguments = {"num_rows": 4, "num_cols": 4, "time_limit": 4}
    environment = jaxdqn.make_env("jumanji:Snake-v1", **arguments)
    assert environment.spec.max_episode_steps == 4

    def expected(obs):  # without the mask
        steps = one_hot(obs.step_count, 4)
        return np.concatenate([obs.grid.reshape(3, -1), steps], axis=1, dtype=np.float32)

    hand = by_hand(jumanji.make("Snake-v1", **arguments), expected, limit=4)
    ends = compare(environment, hand, random_actions(4, 60))
    assert ends.terminated > 3
    assert ends.truncated > 3


def test_several_discrete_actions_are_one():
    environment = jaxdqn.make_env("jumanji:Minesweeper-v0")
    env = jumanji.make("Minesweeper-v0")
    assert environment.spec.num_actions == 100

    def expected(obs):
        board = one_hot(obs.board, 10, start=-1).reshape(3, -1)
        scaled = np.stack([np.asarray(obs.num_mines) / 99, np.asarray(obs.step_count) / 90], axis=1)
        return np.concatenate([board, scaled], axis=1, dtype=np.float32)

    hand = by_hand(env, expected, convert=lambda action: jnp.stack([action // 10, action % 10]))
    assert compare(environment, hand, random_actions(100, 30)).terminated > 3


def test_masks_of_several_actions_are_one():
    joint = np.random.default_rng(0).random((2, 3, 4)) < 0.5
    np.testing.assert_array_equal(joint_mask(jnp.asarray(joint), (2, 3, 4)), joint.reshape(-1))
    each = np.array([[True, False, True], [False, True, True]])
    expected = [each[0, a] and each[1, b] for a in range(3) for b in range(3)]
    np.testing.assert_array_equal(joint_mask(jnp.asarray(each), (3, 3)), expected)


@pytest.mark.parametrize(
    ("ident", "actions", "masked"),
    [
        ("Game2048-v1", 4, True),
        pytest.param("Cleaner-v0", 64, True, marks=pytest.mark.slow),
        ("RubiksCube-v0", 18, False),
    ],
)
def test_the_mask_is_that_of_the_observation(ident, actions, masked):
    with as_written():
        game = source(ident, {})
        assert source(ident, {"masks": False}).legal is None
    assert (game.legal is not None) is masked
    if masked:
        keys = jax.random.split(jax.random.key(0), 8)
        with as_written():
            masks = quick_jit(jax.vmap(lambda key: game.legal(game.reset(key)[0])))(keys)
            _, timestep = quick_jit(jax.vmap(jumanji.make(ident).reset))(keys)
        assert (masks.shape, masks.dtype) == ((8, actions), bool)
        sizes = (4, 4, 4) if ident == "Cleaner-v0" else (4,)
        expected = [joint_mask(mask, sizes) for mask in timestep.observation.action_mask]
        np.testing.assert_array_equal(masks, np.array(expected))
        assert not masks.all()


@pytest.mark.parametrize(
    ("ident", "arguments", "message"),
    [
        ("Game2048", {}, "must be jumanji:ID, with ID a known environment; nearest: Game2048-v1"),
        ("Connector-v3", {}, "must be an environment with at most 1,024 combinations of actions"),
        ("MultiCVRP-v0", {}, "must be an environment with discrete actions, not BoundedArray"),
        ("LevelBasedForaging-v0", {}, "must be an environment with one reward, not 2"),
        ("Game2048-v1", {"size": 5}, "env_args='size': must be an argument of jumanji:Game2048-v1"),
        ("Snake-v1", {"time_limit": 0}, "env_args='time_limit=0': must be at least 1"),
        ("Game2048-v1", {"board_size": -1}, "must be one that its suite can make with valid argum"),
    ],
)
def test_bad_input_is_one_line(ident, arguments, message):
    with pytest.raises(ValueError, match=r"^env") as caught:
        jaxdqn.make_env(f"jumanji:{ident}", **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
