"""Drawn episodes on the host: the frames and rewards of one greedy episode."""

import gymnasium
import jax
import numpy as np
import pytest

from jaxdqn.envs.vector.base import HostEnvironment, time_step
from jaxdqn.envs.vector.gymnasium import from_gymnasium
from jaxdqn.envs.vector.restarts import EnvironmentFailed
from jaxdqn.envs.video import require_drawable
from jaxdqn.training.vector_drawing import play_drawn_episode
from tests.training.test_distinct_episodes import constant_agent


class Walk(gymnasium.Env):
    """Walk by the actions, up to position 4; a frame holds the position."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,))
    action_space = gymnasium.spaces.Discrete(3)
    render_mode = "rgb_array"
    closed = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.position += int(action)
        return np.zeros(1, np.float32), 0.5, self.position == 4, False, {}

    def render(self):
        if self.position == 3 and self.render_mode == "broken":
            raise RuntimeError("no\ndisplay")
        return np.full((2, 3, 3), self.position, np.uint8)

    def close(self):
        Walk.closed += 1


def drawn(environment, **options):
    agent = constant_agent()  # action 1
    frames = list(play_drawn_episode(agent, environment, None, jax.random.key(0), **options))
    return [int(frame[0, 0, 0]) for frame, _ in frames], [reward for _, reward in frames]


@pytest.mark.parametrize(("limit", "length"), [(100, 4), (2, 2)])
def test_the_frames_are_those_of_every_state_and_the_environment_is_closed(limit, length):
    environment = from_gymnasium(Walk, "walk")
    before = Walk.closed
    positions, rewards = drawn(environment, max_steps=limit)
    assert positions == [0, 1, 2, 3, 4][: length + 1]
    assert rewards == [0.0, 0.5, 0.5, 0.5, 0.5][: length + 1]
    assert Walk.closed == before + 1


def test_the_time_limit_of_the_environment_ends_the_episode():
    def make():
        return gymnasium.wrappers.TimeLimit(Walk(), 3)

    assert drawn(from_gymnasium(make, "walk"))[0] == [0, 1, 2, 3]


def test_an_environment_that_fails_to_draw_is_one_line():
    def make():
        walk = Walk()
        walk.render_mode = "broken"
        return walk

    environment = from_gymnasium(Walk, "walk", make_drawable=make)
    with pytest.raises(EnvironmentFailed, match=r"^env='walk': cannot be drawn: no display$"):
        drawn(environment)


def test_an_environment_without_frames_is_one_line_that_says_what_it_needs():
    class Blind(Walk):
        render_mode = None

    message = "^env='blind': must have frames to be drawn: .*render mode rgb_array.*make_drawable$"
    with pytest.raises(ValueError, match=message):
        require_drawable(from_gymnasium(Blind, "blind"))
    require_drawable(from_gymnasium(Blind, "blind", make_drawable=Walk))


class Lives:
    """Lose a life at the second step, and reset at the fifth; a frame holds the count of steps."""

    def reset(self, seed):
        self.steps = 0
        return self._time_step()

    def step(self, actions):
        self.steps += 1
        return self._time_step()

    def render(self):
        return np.full((2, 3, 3), self.steps, np.uint8)

    def close(self):
        pass

    def _time_step(self):
        ends = np.array([self.steps in (2, 4)])
        return time_step(np.zeros((1, 1)), [0.5], ends, [False], [self.steps == 5], np.float32)


def test_a_game_with_lives_is_drawn_to_its_end():
    spec = from_gymnasium(Walk, "walk").spec._replace(terminates_within_episodes=True)
    environment = HostEnvironment(spec, lambda num_envs: Lives(), make_drawable=Lives)
    positions, _ = drawn(environment, max_steps=100)
    assert positions == [0, 1, 2, 3, 4]
