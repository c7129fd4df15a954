"""Policies judged in other environments: the published MinAtar games equal gymnax's."""

import copy

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn import envs
from jaxdqn.envs.gymnax import load, permissive_promotion
from jaxdqn.envs.judge import (
    _EFFECTIVE,
    EnvMapping,
    _with_mask,
    as_judge,
    register_mapping,
)
from jaxdqn.envs.vector import HostEnvironment, host_environment
from jaxdqn.envs.vector.base import time_step
from jaxdqn.envs.vector.gymnasium import from_gymnasium
from jaxdqn.types import EnvSpec
from tests.envs.minatar_states import draws_random_numbers, gymnax_fields, published_game
from tests.toys import quick_jit

pytest.importorskip("minatar")
STATES = 120


def played_states(game):
    """Return states of published games, each with its results for each of the six actions."""
    rng, found = np.random.default_rng(0), []
    env = published_game(game, 0)
    while len(found) < STATES:
        stepped = [copy.deepcopy(env) for _ in range(6)]
        results = [each.act(action) for action, each in enumerate(stepped)]
        random = [draws_random_numbers(game, env, action) for action in range(6)]
        found.append((env, stepped, results, random))
        env = copy.deepcopy(stepped[rng.integers(6)])
        for _ in range(rng.integers(4)):
            env.act(rng.integers(6))
        if env.terminal:
            env = published_game(game, len(found))
    return found


@pytest.mark.parametrize(
    "game",
    [
        pytest.param(game, marks=[] if game in ("Breakout", "SpaceInvaders") else pytest.mark.slow)
        for game in _EFFECTIVE
    ],
)
def test_channels_actions_and_rules_of_gymnax_are_those_of_the_published_games(game):
    env, params = load(f"{game}-MinAtar", use_minimal_action_set=False)
    found = played_states(game)
    with permissive_promotion():
        template = jax.eval_shape(env.reset_env, jax.random.key(0), params)[1]

    names = template.__dataclass_fields__
    fields = [{"time": 0, **gymnax_fields(game, published)} for published, *_ in found]
    states = type(template)(**{
        name: np.array([each[name] for each in fields], getattr(template, name).dtype)
        for name in names
    })  # fmt: skip

    @quick_jit
    def run(states):
        def one(state):
            with permissive_promotion():
                step = jax.vmap(lambda action: env.step_env(key, state, action, params))
                obs, _, reward, terminal, _ = step(jnp.arange(6))
                return env.get_obs(state, params), obs, reward, terminal

        key = jax.random.key(1)
        return jax.vmap(one)(states)

    before, after, rewards, terminals = map(np.asarray, run(states))
    seen = np.zeros(before.shape[-1], bool)
    compared = 0
    for index, (published, stepped, results, random) in enumerate(found):
        np.testing.assert_array_equal(before[index].astype(bool), published.state())
        seen |= published.state().any(axis=(0, 1))
        for action in range(6):
            if random[action]:
                continue
            compared += 1
            context = f"{index} {action}"
            if game != "Seaquest" or not results[action][1]:  # the last oxygen gauges differ
                there = stepped[action].state()
                np.testing.assert_array_equal(after[index, action].astype(bool), there, context)
            assert rewards[index, action] == results[action][0], context
            assert terminals[index, action] == results[action][1], context
    assert seen.all(), "a channel was empty in all states"
    assert compared > 600


def spec(name, num_actions, shape=(10, 10, 4), dtype=bool):
    return EnvSpec(name, shape, np.dtype(dtype), num_actions, None)


@pytest.mark.parametrize("game", _EFFECTIVE)
def test_the_effective_actions_are_the_smaller_set_of_both_worlds(game):
    there = host_environment(f"gymnasium:MinAtar/{game}-v1", {})
    with permissive_promotion():
        here = load(f"{game}-MinAtar")[0].action_set
    assert there.spec.num_actions == len(here)
    assert tuple(np.asarray(here)) == _EFFECTIVE[game]
    assert tuple(published_game(game, 0).minimal_action_set()) == _EFFECTIVE[game]
    assert host_environment(f"gymnasium:MinAtar/{game}-v0", {}).spec.num_actions == 6


def paddle(timestep):
    return np.asarray(timestep.obs)[..., 9, :, 0].argmax(-1).tolist()


@pytest.mark.parametrize(
    ("version", "count", "expected"),
    [
        (0, 6, [4, 3, 3, 4, 4, 4]),
        (1, 6, [4, 3, 3, 4, 4, 4]),
        (0, 3, [4, 3, 4, 4, 3, 4]),
        (1, 3, [4, 3, 4, 4, 3, 4]),
    ],
)
def test_a_policy_of_either_action_set_plays_either_form_of_breakout(version, count, expected):
    arguments = {"sticky_action_prob": 0.0}
    host = host_environment(f"gymnasium:MinAtar/Breakout-v{version}", arguments)
    judge = as_judge(host, spec("Breakout-MinAtar", count))
    assert judge.spec.num_actions == count
    vector = judge.make(1)
    vector.reset(0)
    # n, l, u, r, d, f of six actions; n, l, r, n, l, r of three.
    actions = [0, 1, 2, 3, 4, 5] if count == 6 else [0, 1, 2, 0, 1, 2]
    found = [paddle(vector.step(np.int32([action])))[0] for action in actions]
    vector.close()
    assert found == expected


def test_a_policy_of_the_published_game_plays_that_of_gymnax():
    environment = envs.make("Breakout-MinAtar")
    judge = as_judge(environment, spec("gymnasium:MinAtar/Breakout-v0", 6))
    assert judge.spec.num_actions == 6
    state, timestep = judge.reset(jax.random.key(0))
    found = []
    step = quick_jit(judge.step)
    for action in range(6):
        state, timestep = step(jax.random.key(0), state, jnp.int32(action))
        found.append(paddle(timestep))
    assert found == [4, 3, 3, 4, 4, 4]


def test_sticky_actions_of_the_published_games_repeat_the_last_action():
    host = host_environment("gymnasium:MinAtar/Freeway-v1", {"sticky_action_prob": 1.0})
    vector = host.make(1)
    vector.reset(0)
    for _ in range(12):  # the action before the first is 0, without effect
        timestep = vector.step(np.int32([1]))
    vector.close()
    assert timestep.obs[0, 9, 4, 0]
    assert host.spec.arguments == ("difficulty_ramping=True", "sticky_action_prob=1.0")


def test_another_environment_than_that_of_the_policy_is_one_line_that_names_both():
    cartpole = host_environment("gymnasium:CartPole-v1", {})
    message = (
        r"^on='gymnasium:CartPole-v1': must have the observations and actions of the policy, "
        r"bool\[10, 10, 4\] and 6 actions in 'Breakout-MinAtar', not float32\[4\] and 2 actions; "
        r"translate them with jaxdqn\.envs\.judge\.register_mapping$"
    )
    with pytest.raises(ValueError, match=message):
        as_judge(cartpole, spec("Breakout-MinAtar", 6))
    same = as_judge(cartpole, spec("CartPole-v1", 2, (4,), np.float32))
    assert same is cartpole


class Counter(gymnasium.Env):
    """Observe the last action and its negative."""

    observation_space = gymnasium.spaces.Box(-9, 9, (2,))
    action_space = gymnasium.spaces.Discrete(4)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.float32([5, -5]), {}

    def step(self, action):
        return np.float32([action, -action]), 1.0, action == 3, False, {}

    def render(self):
        return np.zeros((4, 5, 3), np.uint8)


def counter_on_device():
    def step(key, state, action):
        obs = jnp.stack([action, -action]).astype(jnp.float32)
        return state, obs, 1.0, action == 3

    def reset(key):
        return jnp.int32(0), jnp.float32([5, -5])

    return envs.make_environment(reset, step, name="there", num_actions=4)


MAPPING = EnvMapping(actions=(2, 0, 1), observe=lambda obs: obs[:1] * 10)
HERE = spec("here", 3, (1,), np.float32)


@pytest.fixture
def mapped(monkeypatch):
    monkeypatch.setattr("jaxdqn.envs.judge._MAPPINGS", {})
    register_mapping("here", "there", MAPPING)


def test_a_registered_mapping_translates_observations_and_actions_on_the_host(mapped):
    judge = as_judge(from_gymnasium(Counter, "there"), HERE)
    for vector in (judge.make(2), judge.make_drawable()):
        assert vector.reset(0).obs[0].tolist() == [50]
        timestep = vector.step(np.int32([0, 1])[: len(vector.reset(0).first)])
        assert timestep.obs[:, 0].tolist() == [20, 0][: len(timestep.obs)]
        vector.close()
    assert judge.make_drawable().render().shape == (4, 5, 3)


def test_a_registered_mapping_translates_observations_and_actions_on_the_device(mapped):
    judge = as_judge(counter_on_device(), HERE)
    for step in (judge.step, judge.step.advance):
        state, timestep = judge.reset(jax.random.key(0))
        assert timestep.obs.tolist() == [50]
        assert step(jax.random.key(0), state, jnp.int32(2))[1].obs.tolist() == [10]
        assert (judge.spec.num_actions, judge.spec.obs_shape) == (3, (1,))


def test_a_mapping_that_does_not_fit_is_rejected(mapped):
    register_mapping("here", "there", EnvMapping((0, 1, 4)))
    message = r"actions=\[0, 1, 4\]: must map each of the 3 actions of 'here' to one of the 4 of"
    with pytest.raises(ValueError, match=message):
        as_judge(counter_on_device(), HERE)
    register_mapping("here", "there", EnvMapping((0, 1, 2)))  # observations are not mapped
    with pytest.raises(ValueError, match=r"not float32\[2\] and 3 actions$"):
        as_judge(counter_on_device(), HERE)


def test_a_mask_is_that_of_the_actions_of_the_policy():
    legal = np.array([[True, False, True], [False, True, True]])
    plain = time_step(np.zeros((2, 1)), [0, 0], *np.zeros((3, 2), bool), np.float32)
    masked = plain._replace(legal=legal)
    np.testing.assert_array_equal(_with_mask(masked, (2, 0)).legal, [[True, True], [True, False]])
    assert _with_mask(masked, None).legal is legal
    assert _with_mask(plain, (2, 0)).legal == ()


def test_a_policy_without_masks_does_not_play_an_environment_that_has_them():
    policy = spec("mine", 3)
    environment = HostEnvironment(
        policy._replace(name="theirs", masked=True), lambda num_envs: None
    )
    with pytest.raises(ValueError, match=r"3 actions in 'mine', not .* 3 actions with masks"):
        as_judge(environment, policy)
