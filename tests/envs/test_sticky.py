"""Sticky actions repeat the action executed last; rows hold the agent's. Action sets of MinAtar."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn import envs
from jaxdqn.config.config import Config
from jaxdqn.config.presets import preset
from jaxdqn.envs import configured_environment, make_environment, with_sticky_actions
from jaxdqn.envs.sticky import _STREAM
from jaxdqn.monitoring.records import evaluation_record
from jaxdqn.training.evaluation import make_evaluator
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import ActInfo, Agent
from tests.toys import quick_jit, rows_of, tiny

LIMIT = 5


def echo() -> Any:
    """Return an environment whose observation is the action that was executed last, -1 at first."""

    def reset(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.float32(-1), jnp.full(1, -1.0)

    def step(key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[Any, ...]:
        executed = action.astype(jnp.float32)
        return executed, executed[None], executed, False

    return make_environment(reset, step, name="echo", num_actions=7, max_episode_steps=LIMIT)


def play(environment, keys, actions):
    """Return the time steps [T] of an environment, from the first action on."""

    @quick_jit
    def run(keys, actions):
        state, _ = environment.reset(jax.random.key(0))
        return jax.lax.scan(
            lambda state, inputs: environment.step(inputs[0], state, inputs[1]),
            state,
            (keys, actions),
        )[1]

    return jax.device_get(run(keys, actions))


def executed_actions(keys, actions, probability):
    """Return the actions that a loop over steps executes, and where the environment resets."""
    executed, first, previous, length = [], [], 0, 0
    for key, action in zip(keys, actions, strict=True):
        resets = length == LIMIT
        first.append(resets)
        if resets:
            previous, length = 0, 0
            executed.append(-1)
            continue
        if jax.random.bernoulli(jax.random.fold_in(key, _STREAM), probability):
            action = previous
        previous, length = int(action), length + 1
        executed.append(previous)
    return np.array(executed), np.array(first)


def test_the_previous_executed_action_is_repeated_and_is_0_when_an_episode_starts():
    keys = jax.random.split(jax.random.key(1), 40)
    actions = np.arange(40, dtype=np.int32) % 6 + 1
    steps = play(with_sticky_actions(echo(), 0.5), keys, actions)
    executed, first = executed_actions(keys, actions, 0.5)
    np.testing.assert_array_equal(steps.first, first)
    np.testing.assert_array_equal(steps.obs[:, 0], executed)
    starts = np.flatnonzero(first) + 1
    assert 0 in executed[starts[starts < 40]], "no episode began with a repetition"
    repeats = executed[1:] == executed[:-1]
    assert np.sum(repeats) > 5


def test_an_action_is_repeated_with_the_probability():
    keys = jax.random.split(jax.random.key(2), 4_000)
    actions = np.arange(4_000, dtype=np.int32) % 6 + 1
    steps = play(with_sticky_actions(echo(), 0.1), keys, actions)
    played = ~steps.first
    share = np.mean(steps.obs[played, 0] != actions[played])
    assert abs(share - 0.1) < 4 * np.sqrt(0.09 / np.sum(played))


def test_without_sticky_actions_the_environment_is_the_same_object():
    environment = echo()
    assert with_sticky_actions(environment, 0.0) is environment
    assert configured_environment(Config(), environment) is environment


def test_the_repetition_leaves_the_key_of_the_environment_as_it_is():
    keys = jax.random.split(jax.random.key(3), 20)
    plain = envs.make("Catch-bsuite")
    sticky = with_sticky_actions(plain, 0.999)
    still = np.zeros(20, np.int32)  # its repetition is the same action
    one, other = play(plain, keys, still), play(sticky, keys, still)
    np.testing.assert_array_equal(one.obs, other.obs)


def test_rows_hold_the_action_of_the_agent():
    config = tiny(sticky_actions=0.6, warmup_rows=200)
    trainer = make_trainer(config, environment=echo())
    first, _, action, reward, obs = rows_of(quick_jit(trainer.init)(jax.random.key(0)))
    valid = ~first[1:]
    executed = obs[1:, :, 0][valid]
    np.testing.assert_array_equal(executed, reward[:-1][valid])
    share = np.mean(executed != action[:-1][valid])
    # The warm-up is random: six of seven repetitions differ from the action of the agent.
    assert abs(share - 0.6 * 6 / 7) < 4 * np.sqrt(0.25 / np.sum(valid))


def test_an_environment_with_sticky_actions_can_be_drawn():
    environment = with_sticky_actions(envs.make("Breakout-MinAtar"), 0.1)
    state, _ = environment.reset(jax.random.key(0))
    assert environment.render(jax.device_get(state)).shape[2] == 3


@pytest.mark.parametrize(
    ("game", "actions"), [("Breakout", 3), ("Asterix", 5), ("Freeway", 3), ("SpaceInvaders", 4)]
)
def test_presets_use_all_six_actions_of_a_game_and_the_protocol_of_gymnax_those_with_an_effect(
    game, actions
):
    env = f"{game}-MinAtar"
    published = configured_environment(preset("dqn", env=env))
    gymnax = configured_environment(preset("dqn", env=env, protocol="gymnax"))
    assert (published.spec.num_actions, gymnax.spec.num_actions) == (6, actions)
    assert type(published.reset(jax.random.key(0))[0]).__name__ == "StickyState"
    assert type(gymnax.reset(jax.random.key(0))[0]).__name__ == "EpisodeState"


def test_an_environment_with_one_set_of_actions_has_no_full_one():
    with pytest.raises(
        ValueError, match=r"full_action_set=True: must be False with env='Cart.*Ast"
    ):
        configured_environment(Config(full_action_set=True))
    with pytest.raises(ValueError, match="full_action_set=True: must be left out with your own"):
        configured_environment(Config(full_action_set=True), echo())
    chosen = Config(
        env="Breakout-MinAtar", full_action_set=True, env_args=("use_minimal_action_set=True",)
    )
    with pytest.raises(ValueError, match="full_action_set=True: must be False with the argument"):
        configured_environment(chosen)


def reflex_agent(num_actions: int) -> Agent:
    """Return an agent whose greedy actions are a fixed function of the observation, near random."""
    size = 1_000
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(size, num_actions)), jnp.float32)

    def act(key, params, carry, obs, first, exploration):
        flat = obs.reshape(len(obs), -1).astype(jnp.float32)
        q = jnp.sin(100 * flat @ weights[: flat.shape[1]])
        return jnp.argmax(q, axis=-1).astype(jnp.int32), carry, ActInfo(q, q[:, 0])

    return Agent(init=None, act=act, learn=None, initial_carry=lambda size: ())


@pytest.mark.parametrize(
    ("game", "starts"),
    [("Breakout", 2), pytest.param("SpaceInvaders", 1, marks=pytest.mark.slow)],
)
def test_greedy_episodes_of_the_games_of_gymnax_repeat_and_of_the_published_ones_differ(
    game, starts
):
    counts = {}
    for protocol in ("gymnax", "minatar"):
        config = preset("dqn", env=f"{game}-MinAtar", protocol=protocol)
        environment = configured_environment(config)
        evaluate = make_evaluator(reflex_agent(environment.spec.num_actions), environment, 60)
        record = evaluation_record(jax.device_get(quick_jit(evaluate)(None, jax.random.key(0))))
        counts[protocol] = record["distinct_episodes"]
    assert counts["gymnax"] == starts
    assert counts["minatar"] > 5 * starts
