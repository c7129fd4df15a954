"""Octax: the same rows as its own functions give."""

from importlib.util import find_spec

import jax
import numpy as np
import pytest

import jaxdqn
from jaxdqn.envs.suites.adapter import as_written, import_suite
from tests.envs.suites.by_hand import ByHand, compare, random_actions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("octax") is None or find_spec("cv2") is None,
        reason="the extra octax is not installed",
    ),
]


def test_rows_are_those_of_the_suite_stepped_by_hand():
    arguments = {"max_num_steps_per_episodes": 40}
    environment = jaxdqn.make_env("octax:brix", **arguments)
    assert environment.spec.arguments == ("max_num_steps_per_episodes=40",)
    assert environment.spec.max_episode_steps == 40
    (environments,) = import_suite("octax:brix", "octax.environments")
    with as_written():
        env, _ = environments.create_environment("brix", **arguments)

    def reset(key):
        state, obs, _ = env.reset(key)
        return state, obs

    def step(key, state, action):
        return env.step(state, action)[:5]

    hand = ByHand(reset, step, lambda obs: np.moveaxis(np.asarray(obs), (1, 2, 3), (3, 2, 1)))
    ends = compare(environment, hand, random_actions(3, 130))
    assert ends.terminated > 0
    assert ends.truncated > 0
    assert ends.rewards.max() > 0


def test_a_frame_shows_the_screen():
    environment = jaxdqn.make_env("octax:brix")
    state, timestep = environment.reset(jax.random.key(0))
    frame = environment.render(state)
    assert (frame.shape, frame.dtype) == ((256, 512, 3), np.uint8)
    np.testing.assert_array_equal(frame[::8, ::8].any(axis=-1), timestep.obs[..., -1])


@pytest.mark.parametrize(
    ("ident", "arguments", "message"),
    [
        ("brick", {}, "env='octax:brick': must be octax:ID, with ID a known environment; nearest:"),
        ("cavern", {}, "must be octax:ID, with ID a known environment; nearest: cavern"),
        ("brix", {"fpss": 1}, "env_args='fpss': must be an argument of octax:brix; nearest: fps"),
    ],
)
def test_bad_input_is_one_line(ident, arguments, message):
    with pytest.raises(ValueError, match=r"^env") as caught:
        jaxdqn.make_env(f"octax:{ident}", **arguments)
    assert message in str(caught.value)
