"""Sticky actions (Machado et al. 2018, section 5.1): the previous action may be repeated."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.envs.autoreset import AutoresetStep, StepFunction, advance_of
from jaxdqn.types import Array, Environment, PyTree, TimeStep

_STREAM = 0x737469
"""Folded into the key of a step to draw the repetition. It exceeds every index into which an
environment splits its key, so the keys differ."""


class StickyState(NamedTuple):
    """State of an environment with sticky actions."""

    inner: PyTree
    """State of the environment without sticky actions."""
    previous: Array
    """[] int32, last executed action; 0 at the start of an episode."""
    legal: PyTree = ()
    """``TimeStep.legal`` of the last time step"""


def with_sticky_actions(environment: Environment, probability: float) -> Environment:
    """Wrap an environment so that it repeats the previous action with a given probability.

    At the first step of an episode the repeated action is 0, as in the Arcade Learning Environment
    and in MinAtar, where action 0 has no effect. A row of replay stores the action of the agent, so
    the repetition is part of the environment's randomness. If the previous action is illegal now,
    the agent's action is executed.

    Args:
        environment: a single environment; its specification does not change.
        probability: at least 0 and below 1; 0 returns ``environment`` itself.
    """
    if probability == 0:
        return environment
    render, advance = environment.render, advance_of(environment)
    step: StepFunction = partial(_step, environment.step, probability)
    return environment._replace(
        reset=partial(_reset, environment),
        step=step if advance is None else AutoresetStep(step, partial(_step, advance, probability)),
        render=None if render is None else lambda state: render(state.inner),
    )


def _reset(environment: Environment, key: Array) -> tuple[StickyState, TimeStep]:
    inner, timestep = environment.reset(key)
    return StickyState(inner, jnp.int32(0), timestep.legal), timestep


def _step(
    step: StepFunction, probability: float, key: Array, state: StickyState, action: Array
) -> tuple[StickyState, TimeStep]:
    # Pass the key itself to the environment: splitting it takes as long as a small environment.
    repeats = jax.random.bernoulli(jax.random.fold_in(key, _STREAM), probability)
    if not isinstance(state.legal, tuple):
        repeats = repeats & state.legal[state.previous]
    executed = jnp.where(repeats, state.previous, action)
    inner, timestep = step(key, state.inner, executed)
    previous = jnp.where(timestep.first, 0, executed)
    return StickyState(inner, previous, timestep.legal), timestep
