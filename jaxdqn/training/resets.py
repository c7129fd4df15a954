"""Resolution of ``reset='auto'``: resets at every step, or from a pool."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.backend_choices import population_form
from jaxdqn.config.config import Config, replace
from jaxdqn.envs.autoreset import advance_of
from jaxdqn.envs.operations import count_operations
from jaxdqn.types import Environment, Reset

ROW_OPERATIONS = 50_000
"""Operations that a CPU computes in the time of a row without a reset, from the measurement in
docs/performance.md (``python -m benchmarks.resets``).

A row with a cheap reset takes 3.0 us. A reset of 100 products of 32 x 32 matrices, 3.5 million
operations, makes it 230.5 us: 15 operations in a nanosecond. From a pool 0.13 of a reset remains in
a row, and a row without resets takes 1 / 0.94 of the time. A reset that costs as much as the rest
of its row therefore makes training 2 / (1 / 0.94 + 0.13) = 1.7 times as fast if it is pooled.
"""


class ResetChoice(NamedTuple):
    """Resets of a run."""

    reset: Reset
    reason: str


def choose_reset(config: Config, environment: Any) -> ResetChoice:
    """Return the resets of a run; with ``reset='auto'`` choose them.

    A reset that costs more than the rest of a row is pooled: more operations than a step of the
    environment and ``ROW_OPERATIONS``. The choice depends on the traced programs and not on the
    machine. Learners under ``vmap`` reset at every step, because a pool saves them nothing; with
    ``population='auto'`` the backend chooses ``map`` or ``vmap``.

    Args:
      config: configuration of the run.
      environment: environment of the run, on the device or on the host.
    """
    if config.reset != "auto":
        return ResetChoice(config.reset, "as configured")
    if not isinstance(environment, Environment):
        return ResetChoice("every-step", "the environment is on the host")
    if config.learners > 1 and population_form(config.population) == "vmap":
        return ResetChoice("every-step", "a pool saves nothing if learners are vmapped")
    advance = advance_of(environment)
    if advance is None:
        return ResetChoice("every-step", "the step cannot be separated from the reset")
    key = jax.eval_shape(lambda: jax.random.key(0))
    reset, (env_state, _) = count_operations(environment.reset, key)
    cost = f"a reset costs about {reset:,} operations"
    if reset <= ROW_OPERATIONS:  # the step need not be traced
        return ResetChoice("every-step", f"{cost}, at most {ROW_OPERATIONS:,}")
    action = jax.ShapeDtypeStruct((), jnp.int32)
    step, _ = count_operations(advance, key, env_state, action)
    pays = reset > step + ROW_OPERATIONS
    return ResetChoice("pooled" if pays else "every-step", f"{cost}, a step {step:,}")


def resolve_reset(config: Config, environment: Any) -> Config:
    """Return ``config`` with the resets of ``choose_reset`` in place of ``auto``."""
    if config.reset != "auto":
        return config
    return replace(config, reset=choose_reset(config, environment).reset)
