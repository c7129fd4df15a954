"""Episodes of a suite, stepped by hand through the suite's own functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.envs.suites.adapter import as_written
from jaxdqn.types import Environment
from tests.toys import quick_jit

ENVS = 3


class ByHand(NamedTuple):
    """The public functions of a suite, with a common signature."""

    reset: Callable[[Any], tuple[Any, Any]]
    """``reset(key) -> (state, observation)``"""
    step: Callable[[Any, Any, Any], tuple[Any, ...]]
    """``step(key, state, action) -> (state, observation, reward, terminated, truncated)``"""
    expected: Callable[[Any], np.ndarray]
    """``expected(observation) -> array [E, O]`` of a batch, in NumPy"""


class Ends(NamedTuple):
    """Numbers of episodes that ended, and all rewards."""

    terminated: int
    truncated: int
    rewards: np.ndarray


def compare(environment: Environment, hand: ByHand, actions: np.ndarray) -> Ends:
    """Check every time step of an environment against those of its suite.

    Args:
        environment: ours.
        hand: the same environment of the suite.
        actions: ``[steps, ENVS]``, of which those at a reset are ignored.
    """

    def select(over: Any, fresh: Any, stepped: Any) -> Any:
        return jax.tree.map(lambda a, b: _strong(jax.lax.select(over, a, b)), fresh, stepped)

    @quick_jit
    @jax.vmap
    def hand_step(key: Any, state: Any, action: Any, over: Any) -> Any:
        with as_written():
            stepped = hand.step(key, state, action)
            return (*select(over, hand.reset(key), stepped[:2]), *stepped[2:])

    keys = jax.random.split(jax.random.key(7), (len(actions) + 1, ENVS))
    ours, reset = quick_jit(jax.vmap(environment.step)), quick_jit(jax.vmap(environment.reset))
    env_state, timestep = reset(keys[-1])
    with as_written():
        shapes = jax.eval_shape(jax.vmap(hand.reset), keys[-1])[0]
    state = jax.tree.map(
        lambda leaf: keys[-1] if _is_key(leaf) else np.zeros(leaf.shape, leaf.dtype), shapes
    )
    state, observation, *_ = hand_step(keys[-1], state, actions[0], np.ones(ENVS, bool))
    assert timestep.first.all()
    over, ends, rewards = np.zeros(ENVS, bool), np.zeros(2, int), []
    for chosen, drawn in zip(actions, keys, strict=False):
        expected = hand.expected(observation)
        assert (timestep.obs.shape[1:], timestep.obs.dtype) == environment.spec[1:3]
        assert expected.dtype == timestep.obs.dtype
        np.testing.assert_allclose(timestep.obs, expected, rtol=1e-6)
        env_state, timestep = ours(drawn, env_state, chosen)
        state, observation, reward, *flags = hand_step(drawn, state, chosen, over)
        terminated, truncated = (np.asarray(flag).astype(bool) & ~over for flag in flags)
        truncated &= ~terminated
        assert timestep.reward.dtype == np.float32
        np.testing.assert_allclose(timestep.reward, np.where(over, 0, reward), rtol=1e-6)
        np.testing.assert_array_equal(timestep.terminated, terminated)
        np.testing.assert_array_equal(timestep.truncated, truncated)
        np.testing.assert_array_equal(timestep.first, over)
        over = terminated | truncated
        ends += [terminated.sum(), truncated.sum()]
        rewards.append(np.asarray(timestep.reward))
    return Ends(int(ends[0]), int(ends[1]), np.array(rewards))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _strong(leaf: Any) -> Any:
    """Return an array without its weak type, with which a step would be compiled a second time."""
    return leaf if _is_key(leaf) else jnp.asarray(leaf, leaf.dtype)


def random_actions(num_actions: int, steps: int, *scripted: int) -> np.ndarray:
    """Return actions [steps, ENVS], int32; the first environment repeats ``scripted``, if given."""
    actions = np.random.default_rng(0).integers(0, num_actions, (steps, ENVS)).astype(np.int32)
    if scripted:
        actions[:, 0] = np.resize(np.int32(scripted), steps)
    return actions


def one_hot(values: Any, size: int, start: int = 0) -> np.ndarray:
    """Return values [...] as one-hot bool [..., size], in NumPy."""
    return np.asarray(values)[..., None].astype(int) - start == np.arange(size)
