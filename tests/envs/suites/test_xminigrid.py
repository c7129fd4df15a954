"""XLand-MiniGrid: the same rows as its own functions give."""

import jax
import numpy as np
import pytest

import jaxdqn
from tests.envs.suites.by_hand import ByHand, compare, one_hot, random_actions

xminigrid = pytest.importorskip("xminigrid", reason="the extra xminigrid is not installed")

FORWARD, RIGHT, ANY = 0, 1, 5
TO_GOAL = (FORWARD, FORWARD, RIGHT, FORWARD, FORWARD, ANY)
"""Actions to the goal of the room of 5 x 5, and one that the reset ignores."""


def by_hand(name, **arguments):
    env, params = xminigrid.make(name, **arguments)

    def reset(key):
        timestep = env.reset(params, key)
        return timestep, timestep.observation

    def step(key, timestep, action):
        timestep = env.step(params, timestep, action)
        last, terminal = timestep.last(), timestep.discount == 0.0
        return timestep, timestep.observation, timestep.reward, last & terminal, last & ~terminal

    def expected(obs):
        return np.concatenate([one_hot(obs[..., 0], 13), one_hot(obs[..., 1], 12)], axis=-1)

    return ByHand(reset, step, expected)


@pytest.mark.slow
def test_rows_are_those_of_the_suite_stepped_by_hand():
    environment = jaxdqn.make_env("xminigrid:MiniGrid-Empty-5x5", max_steps=9)
    assert environment.spec.arguments == ("max_steps=9",)
    assert environment.spec.max_episode_steps == 9
    hand = by_hand("MiniGrid-Empty-5x5", max_steps=9)
    ends = compare(environment, hand, random_actions(6, 40, *TO_GOAL))
    assert ends.terminated >= 6
    assert ends.truncated >= 4
    assert ends.rewards.max() == pytest.approx(1 - 0.9 * 5 / 9)


@pytest.mark.slow
def test_a_frame_shows_the_grid():
    environment = jaxdqn.make_env("xminigrid:MiniGrid-Empty-5x5")
    state, _ = environment.reset(jax.random.key(0))
    frame = environment.render(state)
    assert (frame.shape, frame.dtype) == ((160, 160, 3), np.uint8)
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 3


@pytest.mark.parametrize(
    ("ident", "arguments", "message"),
    [
        ("MiniGrid-Empty-8x9", {}, "must be xminigrid:ID, with ID a known environment; nearest:"),
        ("MiniGrid-Empty-8x8", {"max_step": 9}, "env_args='max_step': must be an argument of"),
        ("MiniGrid-Empty-8x8", {"max_steps": 0}, "env_args='max_steps=0': must be at least 1"),
        ("MiniGrid-Empty-8x8", {"view_size": 1.5}, "env_args='view_size=1.5': must be a whole"),
    ],
)
def test_bad_input_is_one_line(ident, arguments, message):
    with pytest.raises(ValueError, match=r"^env") as caught:
        jaxdqn.make_env(f"xminigrid:{ident}", **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
