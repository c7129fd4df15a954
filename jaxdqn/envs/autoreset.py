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
    """Resets of one device, of which the first ``used`` have been taken."""

    env_state: PyTree
    """Leaves [C, ...]."""
    timestep: TimeStep
    """Leaves [C, ...]."""
    used: Array
    """[] int32"""


def advance_of(environment: Environment) -> StepFunction | None:
    """Return the step that never resets; None if the environment has only one with autoreset."""
    step = environment.step
    return step.advance if isinstance(step, AutoresetStep) else None


def fill_pool(environment: Environment, key: Array, size: int) -> ResetPool:
    """Reset ``size`` times in bulk; ``key`` is one of acting and is not consumed."""
    keys = jax.random.split(jax.random.fold_in(key, _STREAM), size)
    return ResetPool(*jax.vmap(environment.reset)(keys), used=jnp.int32(0))


def step_from_pool(
    environment: Environment,
    pool: ResetPool,
    keys: Array,
    env_state: PyTree,
    timestep: TimeStep,
    actions: Array,
) -> tuple[PyTree, TimeStep, ResetPool]:
    """Step E environments; those whose episode has ended take the next resets of the pool.

    If too few are left, the pool is filled again; if a full pool has too few, every environment
    makes its own reset and the pool keeps its rest. Both are branches of a conditional on the
    device. A reset is taken at most once, in order, and which are made and dropped depends on
    their number only. So the resets are distributed as those of ``Environment.reset``.

    Args:
      environment: one environment, with an ``AutoresetStep``.
      pool: C resets.
      keys: ``[E]``, are consumed.
      env_state: leaves [E, ...]
      timestep: of the last step, leaves [E, ...]
      actions: ``[E]`` int32
    """
    advance = advance_of(environment)
    assert advance is not None
    resetting = timestep.terminated | timestep.truncated
    needed, size = jnp.sum(resetting, dtype=jnp.int32), pool.timestep.first.shape[0]
    rank = jnp.cumsum(resetting, dtype=jnp.int32) - 1

    def take(pool: ResetPool) -> tuple[PyTree, TimeStep, ResetPool]:
        index = jnp.clip(pool.used + rank, 0, size - 1)
        fresh = jax.tree.map(lambda leaf: leaf[index], (pool.env_state, pool.timestep))
        return *fresh, pool._replace(used=pool.used + needed)

    def fill_and_take(pool: ResetPool) -> tuple[PyTree, TimeStep, ResetPool]:
        return take(fill_pool(environment, keys[0], size))

    def make_for_all(pool: ResetPool) -> tuple[PyTree, TimeStep, ResetPool]:
        # The keys may be those of the steps: it was known before that these are not used.
        return *jax.vmap(environment.reset)(keys), pool

    branch = jnp.where(pool.used + needed <= size, 0, jnp.where(needed <= size, 1, 2))
    fresh_state, fresh_timestep, pool = jax.lax.switch(
        branch, (take, fill_and_take, make_for_all), pool
    )
    stepped = jax.vmap(advance)(keys, env_state, actions)
    env_state, timestep = select(resetting, (fresh_state, fresh_timestep), stepped)
    return env_state, timestep, pool


def select(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    """Return leaves [E, ...] of ``yes`` where ``condition`` [E] holds, and of ``no`` elsewhere."""

    def select_one(condition: Array, yes: Any, no: Any) -> Any:
        return jax.tree.map(lambda a, b: jax.lax.select(condition, a, b), yes, no)

    return jax.vmap(select_one)(condition, yes, no)
