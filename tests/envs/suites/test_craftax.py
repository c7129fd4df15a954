"""Craftax: the same rows as its own functions give. They take minutes to compile."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdqn
from jaxdqn.envs.suites.adapter import import_suite
from tests.envs.suites.by_hand import ByHand, compare, random_actions
from tests.toys import quick_jit

pytestmark = pytest.mark.skipif(
    find_spec("craftax") is None, reason="the extra craftax is not installed"
)

NAME, LIMIT = "Craftax-Classic-Symbolic-v1", 7


@pytest.mark.slow
def test_rows_are_those_of_the_suite_stepped_by_hand():
    environment = jaxdqn.make_env(f"craftax:{NAME}", max_timesteps=LIMIT)
    assert environment.spec.arguments == (f"max_timesteps={LIMIT}",)
    assert environment.spec.max_episode_steps == LIMIT
    (module,) = import_suite(f"craftax:{NAME}", "craftax.craftax_env")
    env = module.make_craftax_env_from_name(NAME, auto_reset=False)
    params = env.default_params.replace(max_timesteps=LIMIT)

    def reset(key):
        obs, state = env.reset(key, params)
        return state, obs

    def step(key, state, action):
        obs, state, reward, done, _ = env.step(key, state, action, params)
        alive = state.player_health > 0
        return state, obs, reward, done & ~alive, done & alive

    ends = compare(environment, ByHand(reset, step, np.asarray), random_actions(17, 30))
    assert ends.truncated >= 3 * 3


@pytest.mark.slow
def test_death_terminates_also_at_the_time_limit():
    environment = jaxdqn.make_env(f"craftax:{NAME}", max_timesteps=LIMIT)
    state, _ = quick_jit(environment.reset)(jax.random.key(0))
    step = quick_jit(environment.step)
    for timestep in (0, LIMIT - 1):
        inner = state.inner.replace(
            player_health=jnp.int32(0), timestep=jnp.asarray(timestep, state.inner.timestep.dtype)
        )
        _, after = step(jax.random.key(1), state._replace(inner=inner), jnp.int32(0))
        assert (after.terminated, after.truncated) == (True, False)


def test_arguments_are_those_of_both_groups_of_parameters():
    with pytest.raises(ValueError, match="env_args='max_zombie': must be an argument of"):
        jaxdqn.make_env(f"craftax:{NAME}", max_zombie=3)
    with pytest.raises(ValueError, match="env_args='max_timesteps=0': must be at least 1"):
        jaxdqn.make_env(f"craftax:{NAME}", max_timesteps=0)
    with pytest.raises(ValueError, match="with ID a known environment; nearest: Craftax-Symbolic"):
        jaxdqn.make_env("craftax:Craftax-Symbolic-v2")
