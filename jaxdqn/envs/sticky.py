"""Sticky actions (Machado et al. 2018, section 5.1): the previous action may be repeated."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.envs.autoreset import AutoresetStep, StepFunction, advance_of
from jaxdqn.types import Array, Environment, PyTree, TimeStep

_STREAM = 0x737469
"""Folded into the key of a step. Environments split their keys into far fewer, so none of theirs
equals the key of the repetition."""


class StickyState(NamedTuple):
    """State of an environment with sticky actions."""

    inner: PyTree
    """State of the environment without them."""
    previous: Array
    """[] int32, the action that was executed last; 0 at the start of an episode."""
    legal: PyTree = ()
    """``TimeStep.legal`` of the last time step"""


def with_sticky_actions(environment: Environment, probability: float) -> Environment:
    """Repeat the previous action with a probability, whatever the agent's action is.

    At the first step of an episode the repeated action is 0, as in the Arcade Learning Environment
    and in MinAtar, where it is the action without effect. A row of replay holds the action of the
    agent, so the repetition is part of the environment's randomness. An action that the mask of the
    environment forbids is not repeated: the agent's action is executed then.

    Args:
        environment: one environment; its specification does not change.
        probability: from 0, which returns ``environment`` itself, to below 1.
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
    # The environment receives the key itself: splitting it takes as long as a small environment.
    repeats = jax.random.bernoulli(jax.random.fold_in(key, _STREAM), probability)
    if not isinstance(state.legal, tuple):
        repeats = repeats & state.legal[state.previous]
    executed = jnp.where(repeats, state.previous, action)
    inner, timestep = step(key, state.inner, executed)
    previous = jnp.where(timestep.first, 0, executed)
    return StickyState(inner, previous, timestep.legal), timestep
