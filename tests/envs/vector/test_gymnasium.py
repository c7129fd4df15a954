"""Environments of Gymnasium on the host: the same rows as Gymnasium stepped by hand."""

import sys

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

from jaxdqn.envs.vector import host_environment
from jaxdqn.envs.vector.base import time_step
from jaxdqn.envs.vector.checked import check_time_step
from jaxdqn.envs.vector.gymnasium import from_gymnasium
from jaxdqn.envs.vector.spaces import discrete_actions, observation_arrays


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "FrozenLake-v1"])
def test_rows_are_those_of_gymnasium_stepped_by_hand(name):
    arguments = {"max_episode_steps": 15}
    host = host_environment(f"gymnasium:{name}", arguments)
    assert host.spec.max_episode_steps == 15
    envs, steps, rng = 3, 60, np.random.default_rng(0)
    vector = host.make(envs)
    timestep = vector.reset(7)
    assert timestep.first.all()
    plain = [gymnasium.make(name, **arguments) for _ in range(envs)]
    seen = [env.reset(seed=7 + index)[0] for index, env in enumerate(plain)]
    over = [False] * envs
    convert = observation_arrays(plain[0].observation_space).convert
    ends = 0
    for _ in range(steps):
        np.testing.assert_array_equal(timestep.obs, convert(np.array(seen), envs))
        actions = rng.integers(0, host.spec.num_actions, envs).astype(np.int32)
        timestep = vector.step(actions)
        for index, env in enumerate(plain):
            if over[index]:
                seen[index], _ = env.reset()
                expected = (0.0, False, False, True)
            else:
                seen[index], reward, terminated, truncated, _ = env.step(int(actions[index]))
                expected = (np.float32(reward), terminated, truncated and not terminated, False)
            over[index] = expected[1] or expected[2]
            ends += over[index]
            found = (timestep.reward, timestep.terminated, timestep.truncated, timestep.first)
            assert tuple(leaf[index] for leaf in found) == expected
    assert ends > 3
    assert [timestep.obs.dtype, timestep.reward.dtype] == [host.spec.obs_dtype, np.float32]
    vector.close()


@pytest.mark.slow
def test_environments_in_processes_have_the_rows_of_those_in_this_process():
    here, there = (
        host_environment("gymnasium:CartPole-v1", {}, processes=processes).make(2)
        for processes in (False, True)
    )
    try:
        rng, step = np.random.default_rng(0), (here.reset(1), there.reset(1))
        for _ in range(60):
            jax.tree.map(np.testing.assert_array_equal, *step)
            actions = rng.integers(0, 2, 2).astype(np.int32)
            step = here.step(actions), there.step(actions)
    finally:
        here.close()
        there.close()


def test_a_function_that_makes_an_environment_is_enough():
    host = from_gymnasium(lambda: gymnasium.make("CartPole-v1", max_episode_steps=9), "mine")
    assert (host.spec.name, host.spec.max_episode_steps) == ("mine", 9)
    vector = host.make(2)
    assert vector.reset(0).obs.shape == (2, 4)
    vector.close()


def test_a_time_step_is_not_written_to_by_later_steps():
    vector = host_environment("gymnasium:CartPole-v1", {}).make(2)
    first = vector.reset(0)
    before = first.obs.copy()
    vector.step(np.zeros(2, np.int32))
    np.testing.assert_array_equal(first.obs, before)
    assert not np.array_equal(vector.step(np.ones(2, np.int32)).obs, before)
    vector.close()


def test_equal_seeds_give_equal_episodes():
    vector = host_environment("gymnasium:CartPole-v1", {}).make(2)
    first = vector.reset(3).obs
    assert not np.array_equal(first[0], first[1])
    vector.step(np.zeros(2, np.int32))
    np.testing.assert_array_equal(vector.reset(3).obs, first)
    assert not np.array_equal(vector.reset(4).obs, first)
    vector.close()


@pytest.mark.parametrize(
    ("space", "observation", "expected"),
    [
        (spaces.Box(-1, 1, (2,), np.float64), [0.5, -1.0], np.float32([0.5, -1])),
        (spaces.Box(0, 255, (2, 1), np.uint8), np.uint8([[7], [9]]), np.uint8([[7], [9]])),
        (spaces.Box(0, 9, (2,), np.int64), [3, 4], np.float32([3, 4])),
        (spaces.Discrete(3, start=5), 6, np.array([False, True, False])),
        (
            spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(-9, 9, (2,))}),
            {"b": 1, "a": np.float32([2, 3])},
            np.float32([2, 3, 0, 1]),
        ),
        (
            spaces.Tuple([spaces.MultiBinary(2), spaces.Discrete(2)]),
            (np.int8([1, 0]), 0),
            np.float32([1, 0, 1, 0]),
        ),
    ],
    ids=["float64", "uint8", "int64", "discrete", "dict", "tuple"],
)
def test_observations_of_every_space_are_arrays_of_one_shape(space, observation, expected):
    arrays = observation_arrays(space)
    assert (arrays.shape, arrays.dtype) == (expected.shape, expected.dtype)
    # Two environments, as the buffers of a vector environment hold them.
    buffer = gymnasium.vector.utils.create_empty_array(space, 2)
    batch = gymnasium.vector.utils.concatenate(space, [observation, space.sample()], buffer)
    converted = np.array(arrays.convert(batch, 2), arrays.dtype)
    assert converted.shape == (2, *arrays.shape)
    np.testing.assert_array_equal(converted[0], expected)


def test_several_discrete_actions_are_one_and_cover_the_space():
    space = spaces.MultiDiscrete([2, 3], start=[0, 5])
    actions = discrete_actions(space)
    assert actions.size == 6
    batch = actions.convert(np.arange(6, dtype=np.int32))
    assert {tuple(row) for row in batch.tolist()} == {(a, b) for a in (0, 1) for b in (5, 6, 7)}
    assert all(space.contains(row) for row in batch)
    binary = discrete_actions(spaces.MultiBinary(3))
    assert binary.size == 8
    assert binary.convert(np.int32([5])).tolist() == [[1, 0, 1]]
    start = discrete_actions(spaces.Discrete(4, start=2))
    assert start.convert(np.int32([0, 3])).tolist() == [2, 5]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "CartPoel-v1",
            {},
            "env='gymnasium:CartPoel-v1': must be an id .*; nearest: gym",
        ),
        ("Pendulum-v1", {}, "env='gymnasium:Pendulum-v1': action space .*: must be discrete"),
        ("CartPole-v1", {"speed": 3}, "env_args: must be arguments of CartPole-v1; .*speed"),
        ("FrozenLake-v1", {"map_name": "9x9"}, "env_args: must be arguments of .*KeyError: '9x9'"),
    ],
)
def test_what_cannot_be_made_is_one_line_that_names_it(name, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        host_environment(f"gymnasium:{name}", arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "package", "message"),
    [
        (
            "MinAtar/Breakout-v1",
            "minatar",
            "needs the package minatar, which is not installed; "
            r'pip install "jaxdqn\[minatar\]" installs it$',
        ),
        (
            "LunarLander-v3",
            "Box2D",
            r'cannot be made: Box2D is not installed; pip install "jaxdqn\[box2d\]" installs it$',
        ),
        (
            "highway_env:highway-fast-v0",
            "highway_env",
            r"cannot be made: No module named 'highway_env'; "
            r'pip install "jaxdqn\[driving\]" installs it$',
        ),
        ("no_module:Some-v0", "no_module", r"cannot be made: No module named 'no_module'$"),
    ],
)
def test_a_missing_extra_is_one_line_that_tells_how_to_install_it(
    name, package, message, monkeypatch
):
    for module in [*sys.modules]:
        if module.partition(".")[0] == package or module.startswith("gymnasium.envs.box2d"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    games = {id: spec for id, spec in gymnasium.registry.items() if "MinAtar" not in id}
    monkeypatch.setattr(gymnasium.envs.registration, "registry", games)
    monkeypatch.setattr(gymnasium, "registry", games)
    with pytest.raises(ValueError, match=f"^env='gymnasium:{name}': {message}") as raised:
        host_environment(f"gymnasium:{name}", {})
    assert "\n" not in str(raised.value)


def test_box2d_is_imported_where_warnings_are_errors():
    pytest.importorskip("pygame")
    host = host_environment("gymnasium:LunarLander-v3", {})
    assert (host.spec.obs_shape, host.spec.num_actions) == ((8,), 4)
    vector = host.make_drawable()
    vector.reset(0)
    assert vector.render().shape == (400, 600, 3)
    vector.close()


def test_too_many_combinations_of_actions_are_rejected():
    with pytest.raises(ValueError, match="at most 1,024 combinations to be one discrete space"):
        discrete_actions(spaces.MultiDiscrete([40, 40]))


class Wide(gymnasium.Env):
    """Return an observation that is wider than its space after the reset."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {}


def test_an_observation_of_another_shape_than_its_space_is_an_error():
    vector = from_gymnasium(Wide, "wide").make(2)
    vector.reset(0)
    message = r"environment 0 returned an observation of shape \[3\], and its space has \[2\]"
    with pytest.raises(ValueError, match=message):
        vector.step(np.zeros(2, np.int32))


def test_a_number_outside_a_discrete_space_is_an_error():
    space = spaces.Discrete(3, start=5)
    with pytest.raises(ValueError, match=r"^observation 4 is outside its space Discrete"):
        observation_arrays(space).convert_one(4)
    with pytest.raises(ValueError, match=r"^observation \[5 8\] is outside its space"):
        observation_arrays(space).convert(np.array([5, 8]), 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_observation_that_is_not_finite_is_an_error_unless_it_is_terminal(value):
    spec = from_gymnasium(Wide, "wide").spec
    obs, no = np.zeros((3, 2)), np.zeros(3, bool)
    obs[1, 1] = value
    timestep = time_step(obs, np.zeros(3), no, no, no, np.dtype(np.float32))
    with pytest.raises(ValueError, match=f"^environment 1 returned an .* that contains {value}$"):
        check_time_step(timestep, spec, 3)
    terminal = timestep._replace(terminated=np.array([False, True, False]))
    assert check_time_step(terminal, spec, 3) is terminal


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gymnasium.make_vec("CartPole-v1", num_envs=2), "must be one environment"),
        (lambda: gymnasium.wrappers.Autoreset(Wide()), "wrapper Autoreset: must be removed"),
    ],
    ids=["vector", "autoreset"],
)
def test_an_environment_that_resets_itself_is_rejected(make, message):
    with pytest.raises(ValueError, match=f"^env='mine': .*{message}"):
        from_gymnasium(make, "mine")


def test_every_environment_is_closed_if_one_cannot_be_made():
    made = []

    def make():
        if len(made) == 3:  # the first is made to read the spaces
            raise OSError("no licence left")
        made.append(Wide())
        made[-1].close = lambda: closed.append(True)
        return made[-1]

    closed = []
    host = from_gymnasium(make, "mine")
    closed.clear()
    with pytest.raises(OSError, match="no licence left"):
        host.make(4)
    assert len(closed) == 2
