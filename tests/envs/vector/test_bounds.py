"""Observations outside of the bounds of their space, with ``--check-bounds``."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from jaxdqn import envs
from jaxdqn.config.config import Config
from jaxdqn.envs.vector import HostEnvironment
from jaxdqn.envs.vector.bounds import with_checked_bounds
from jaxdqn.envs.vector.checked import CheckedEnvironments
from jaxdqn.envs.vector.gymnasium import from_gymnasium
from jaxdqn.envs.vector.restarts import EnvironmentFailed
from jaxdqn.training.trainer import make_trainer
from tests.toys import tiny


class Counting(gymnasium.Env):
    """Observations are the number of steps; a function of it with another space."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, observe):
        self.observation_space, self._observe, self._count = space, observe, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._count = 0
        return self._observe(0), {}

    def step(self, action):
        self._count += 1
        return self._observe(self._count), 0.0, False, False, {}


def checked(space, observe, check=True):
    """Return two environments, which check their bounds if ``check`` is True."""
    host = from_gymnasium(lambda: Counting(space, observe), "counting")
    vector = CheckedEnvironments(with_checked_bounds(host) if check else host, 2)
    vector.reset(0)
    return vector


BOX = spaces.Box(np.float32([[-1, 0], [0, 0]]), np.float32([[1, 3], [0, 9]]))


def test_an_observation_outside_of_its_bounds_names_environment_element_and_bounds():
    vector = checked(BOX, lambda count: np.float32([[0, count], [0, 2]]))
    for _ in range(3):  # at the bound
        vector.step(np.zeros(2, np.int32))
    message = (
        r"^env='counting': step failed: ValueError: environment 0 returned an observation whose "
        r"element \[0, 1\] is 4\.0, outside of the bounds 0\.0 and 3\.0 of its space$"
    )
    with pytest.raises(EnvironmentFailed, match=message):
        vector.step(np.zeros(2, np.int32))


def test_the_first_observation_is_checked_too_and_nothing_without_the_option():
    def outside(count):
        return np.float32([[-2, 0], [0, 2]])

    with pytest.raises(EnvironmentFailed, match=r"reset failed: .* is -2\.0, outside"):
        checked(BOX, outside)
    checked(BOX, outside, check=False).step(np.zeros(2, np.int32))


def test_bounds_of_flattened_spaces_are_checked():
    space = spaces.Dict({"a": spaces.Box(0, 5, (2,)), "b": spaces.Discrete(3)})
    vector = checked(space, lambda count: {"a": np.float32([1, 3 + count]), "b": 2})
    for _ in range(2):
        vector.step(np.zeros(2, np.int32))
    with pytest.raises(EnvironmentFailed, match=r"element \[1\] is 6\.0, .* 0\.0 and 5\.0"):
        vector.step(np.zeros(2, np.int32))


def test_bounds_in_float64_are_rounded_like_observations():
    greatest = np.finfo(np.float64).max
    space = spaces.Box(np.array([-0.1, -greatest]), np.array([0.1, greatest]), dtype=np.float64)
    vector = checked(space, lambda count: np.array([0.1, 1e30]))
    vector.step(np.zeros(2, np.int32))


def test_environments_without_bounds_and_on_the_device_reject_the_option():
    config = Config(env="gymnasium:CartPole-v1", check_bounds=True)
    host = envs.configured_host_environment(config)
    assert host.check_bounds
    assert host.bounds[1].shape == (4,)
    own = HostEnvironment(host.spec, host.make)
    with pytest.raises(
        ValueError, match=r"^check_bounds=True: must be False with env=.* no bounds"
    ):
        envs.configured_host_environment(Config(check_bounds=True), own)
    with pytest.raises(ValueError, match=r"^check_bounds=True: must be False with an environment"):
        make_trainer(tiny(check_bounds=True))
