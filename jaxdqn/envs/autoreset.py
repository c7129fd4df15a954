"""Next-step autoreset, with resets computed at every step or taken from a precomputed pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, Environment, PyTree, TimeStep

StepFunction = Callable[[Array, PyTree, Array], tuple[PyTree, TimeStep]]
"""``step(key, env_state, action) -> (env_state, timestep)``"""

_STREAM = 0x706F6F6C
"""Folded into an acting key to derive the key of the pool; it exceeds every split index."""


class AutoresetStep:
    """``Environment.step``, together with ``advance``, a step that never resets.

    Both belong to one object, so a wrapper that replaces ``step`` also drops ``advance``.
    """

    def __init__(self, step: StepFunction, advance: StepFunction) -> None:
        """Make the step from its two functions.

        Args:
            step: step with next-step autoreset.
            advance: step without autoreset. After the end of an episode its result is defined but
                meaningless.
        """
        self._step, self.advance = step, advance

    def __call__(self, key: Array, state: PyTree, action: Array) -> tuple[PyTree, TimeStep]:
        """Step the environment, or reset it if the last step ended the episode."""
        return self._step(key, state, action)


class ResetPool(NamedTuple):
    """C precomputed resets on one device. The first ``used`` of them have been taken."""

    env_state: PyTree
    """Leaves [C, ...]."""
    timestep: TimeStep
    """Leaves [C, ...]."""
    used: Array
    """[] int32, number of resets taken"""


def advance_of(environment: Environment) -> StepFunction | None:
    """Return the step without autoreset; None if the environment does not have one."""
    step = environment.step
    return step.advance if isinstance(step, AutoresetStep) else None


def fill_pool(environment: Environment, key: Array, size: int) -> ResetPool:
    """Precompute ``size`` resets. ``key`` is an acting key and is not consumed."""
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
    """Step E environments; take a reset from the pool for each environment that needs one.

    If too few resets are left, the pool is refilled. If even a full pool has too few, every
    environment computes its own reset and the pool is unchanged. Both cases are branches of a
    conditional on the device. Resets are taken in order and at most once. A refill drops the
    remaining resets regardless of their values, so the resets have the distribution of
    ``Environment.reset``.

    Args:
      environment: a single environment with an ``AutoresetStep``.
      pool: pool of C resets.
      keys: ``[E]`` random keys; consumed.
      env_state: leaves [E, ...]
      timestep: time step of the last vector step, leaves [E, ...]
      actions: ``[E]`` int32

    Returns:
      The states and the time step, leaves [E, ...], and the pool.
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
        # The keys of the steps can be reused, because the results of the steps are discarded.
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
