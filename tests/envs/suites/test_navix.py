"""NAVIX: the same rows as its own functions give."""

from importlib.util import find_spec

import jax
import numpy as np
import pytest

import jaxdqn
from jaxdqn.envs.suites.adapter import import_suite
from tests.envs.suites.by_hand import ByHand, compare, one_hot, random_actions

pytestmark = pytest.mark.skipif(
    find_spec("navix") is None, reason="the extra navix is not installed"
)

RIGHT, FORWARD, ANY = 1, 2, 6
TO_GOAL = (FORWARD, FORWARD, RIGHT, FORWARD, FORWARD, ANY)
"""Actions to the goal of the room of 5 x 5, and one that the reset ignores."""


def load():
    """Import the package as its adapter does, without the part that needs an account."""
    return import_suite("navix:test", "navix", lazily=("wandb", "wandb.util"))[0]


def by_hand(name, expected, **arguments):
    env = load().make(name, **arguments)

    def reset(key):
        timestep = env.reset(key)
        return timestep, timestep.observation

    def step(key, timestep, action):
        timestep = env.step(timestep, action)
        flags = timestep.is_termination(), timestep.is_truncation()
        return timestep, timestep.observation, timestep.reward, *flags

    return ByHand(reset, step, expected)


def symbols(obs):
    channels = zip(range(3), (11, 6, 4), strict=True)
    return np.concatenate([one_hot(obs[..., channel], size) for channel, size in channels], axis=-1)


def test_rows_are_those_of_the_suite_stepped_by_hand():
    environment = jaxdqn.make_env("navix:Navix-Empty-5x5-v0", max_steps=9)
    assert environment.spec.arguments == ("max_steps=9",)
    assert environment.spec.max_episode_steps == 9
    hand = by_hand("Navix-Empty-5x5-v0", symbols, max_steps=9)
    ends = compare(environment, hand, random_actions(7, 40, *TO_GOAL))
    assert ends.terminated >= 6
    assert ends.truncated >= 4
    assert ends.rewards.max() == 1


def test_obstacles_move_as_in_the_suite():
    name = "Navix-Dynamic-Obstacles-5x5-v0"
    environment = jaxdqn.make_env(f"navix:{name}", max_steps=9)
    ends = compare(environment, by_hand(name, symbols, max_steps=9), random_actions(7, 30))
    assert ends.terminated > 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("categorical", lambda obs: one_hot(obs, 12, start=-1)),
        ("rgb", np.asarray),
    ],
)
def test_other_observations_are_those_of_the_suite(kind, expected):
    environment = jaxdqn.make_env("navix:Navix-Empty-5x5-v0", observation=kind, max_steps=9)
    assert environment.spec.arguments == ("max_steps=9", f"observation={kind}")
    observation_fn = getattr(load().observations, kind)
    hand = by_hand("Navix-Empty-5x5-v0", expected, max_steps=9, observation_fn=observation_fn)
    assert compare(environment, hand, random_actions(7, 15, *TO_GOAL)).terminated > 0


def test_the_state_holds_no_pictures():
    environment = jaxdqn.make_env("navix:Navix-Empty-5x5-v0")
    state, _ = jax.eval_shape(environment.reset, jax.random.key(0))
    assert max(leaf.size for leaf in jax.tree.leaves(state)) < 100


def test_a_frame_shows_the_grid():
    environment = jaxdqn.make_env("navix:Navix-Empty-5x5-v0")
    state, _ = environment.reset(jax.random.key(0))
    frame = environment.render(state)
    assert (frame.shape, frame.dtype) == ((160, 160, 3), np.uint8)
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 3


@pytest.mark.parametrize(
    ("ident", "arguments", "message"),
    [
        ("Navix-Empty-8x9-v0", {}, "must be navix:ID, with ID a known environment; nearest: Navix"),
        ("Navix-Empty-8x8-v0", {"max_step": 9}, "env_args='max_step': must be an argument of"),
        ("Navix-Empty-8x8-v0", {"max_steps": 0}, "env_args='max_steps=0': must be at least 1"),
        (
            "Navix-Empty-8x8-v0",
            {"observation": "symbol"},
            "env_args='observation=symbol': must be a known observation; nearest: symbolic",
        ),
    ],
)
def test_bad_input_is_one_line(ident, arguments, message):
    with pytest.raises(ValueError, match=r"^env") as caught:
        jaxdqn.make_env(f"navix:{ident}", **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
