"""Next-step autoreset: at every step, or from a pool of resets that are made in bulk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, Environment, PyTree, TimeStep

StepFunction = Callable[[Array, PyTree, Array], tuple[PyTree, TimeStep]]
"""``step(key, env_state, action) -> (env_state, timestep)``"""

_STREAM = 0x706F6F6C
"""Folded into a key of acting, which is split into far fewer keys, to draw the pool."""


class AutoresetStep:
    """``Environment.step``, together with the step that never resets.

    They are one object, so that an environment whose step is replaced keeps no other step.
    """

    def __init__(self, step: StepFunction, advance: StepFunction) -> None:
        """Make the step from its two functions.

        Args:
            step: with next-step autoreset.
            advance: the same without it; invalid, but defined, after the end of an episode.
        """
        self._step, self.advance = step, advance

    def __call__(self, key: Array, state: PyTree, action: Array) -> tuple[PyTree, TimeStep]:
        """Step, or reset if the last step ended the episode."""
        return self._step(key, state, action)


class ResetPool(NamedTuple):
    """Resets that no environment has used yet, of one device and one iteration."""

    env_state: PyTree
    """Leaves [C, ...]."""
    timestep: TimeStep
    """Leaves [C, ...]."""


def advance_of(environment: Environment) -> StepFunction | None:
    """Return the step that never resets; None if the environment has only one with autoreset."""
    step = environment.step
    return step.advance if isinstance(step, AutoresetStep) else None


def fill_pool(environment: Environment, key: Array, size: int) -> ResetPool:
    """Reset ``size`` times in bulk; ``key`` is one of acting and is not consumed."""
    keys = jax.random.split(jax.random.fold_in(key, _STREAM), size)
    return ResetPool(*jax.vmap(environment.reset)(keys))


def step_from_pool(
    environment: Environment,
    pool: ResetPool,
    used: Array,
    keys: Array,
    env_state: PyTree,
    timestep: TimeStep,
    actions: Array,
) -> tuple[PyTree, TimeStep, Array]:
    """Step E environments; those whose episode has ended take the next resets of the pool.

    Each reset of the pool is taken at most once, in order, whatever its value, so the resets are
    distributed as those of ``Environment.reset``. If too few are left, all environments that reset
    in this step make their own, by a conditional on the device, and the pool keeps the rest.

    Args:
      environment: one environment, with an ``AutoresetStep``.
      pool: C resets.
      used: ``[]`` int32, resets that were taken.
      keys: ``[E]``, are consumed.
      env_state: leaves [E, ...]
      timestep: of the last step, leaves [E, ...]
      actions: ``[E]`` int32

    Returns:
      The states and time steps, leaves [E, ...], and the number of resets that were taken.
    """
    advance = advance_of(environment)
    assert advance is not None
    resetting = timestep.terminated | timestep.truncated
    size = pool.timestep.first.shape[0]
    needed = jnp.sum(resetting, dtype=jnp.int32)
    suffices = used + needed <= size
    place = used + jnp.cumsum(resetting, dtype=jnp.int32) - 1

    def from_pool(keys: Array) -> tuple[PyTree, TimeStep]:
        index = jnp.clip(place, 0, size - 1)
        return jax.tree.map(lambda leaf: leaf[index], tuple(pool))

    def fresh_for_all(keys: Array) -> tuple[PyTree, TimeStep]:
        # The keys may be those of the steps: it was known before that these are not used.
        return jax.vmap(environment.reset)(keys)

    fresh = jax.lax.cond(suffices, from_pool, fresh_for_all, keys)
    stepped = jax.vmap(advance)(keys, env_state, actions)
    env_state, timestep = select(resetting, fresh, stepped)
    return env_state, timestep, used + jnp.where(suffices, needed, 0)


def select(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """Return leaves [E, ...] of ``yes`` where ``condition`` [E] holds, and of ``no`` elsewhere."""

    def select_one(condition: Array, yes: Any, no: Any) -> Any:
        return jax.tree.map(lambda a, b: jax.lax.select(condition, a, b), yes, no)

    return jax.vmap(select_one)(condition, yes, no)
