"""Outer optimiser of periodic averaging (DiLoCo): a step from the last common parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdqn.types import Hyper, Params, PyTree


class OuterState(NamedTuple):
    """State of the outer optimiser, equal on all replicas."""

    anchor: Params
    """Trained parameters after the last averaging."""
    momentum: Params


class WithOuter(NamedTuple):
    """States of the (inner) optimiser and of the outer optimiser."""

    inner: PyTree
    outer: OuterState


def outer_step(
    state: OuterState, mean: Params, *, learning_rate: float, momentum: float
) -> tuple[Params, OuterState]:
    """Take a step of Nesterov momentum along the mean change (Douillard et al. 2023, algorithm 1).

    With ``delta = anchor - mean`` and ``m' = momentum m + delta``, the new parameters are
    ``anchor - learning_rate (delta + momentum m')``. A learning rate of 1 without momentum gives
    the mean, which is plain averaging.

    Args:
      state: state of the outer optimiser.
      mean: mean of the trained parameters over replicas.
      learning_rate: learning rate of the outer optimiser.
      momentum: momentum of the outer optimiser.

    Returns:
      The new parameters and the new state.
    """
    delta = jax.tree.map(jnp.subtract, state.anchor, mean)
    velocity = jax.tree.map(lambda m, d: momentum * m + d, state.momentum, delta)
    params = jax.tree.map(
        lambda anchor, d, m: anchor - learning_rate * (d + momentum * m),
        state.anchor,
        delta,
        velocity,
    )
    # A copy, because each buffer of a donated state may appear in it only once.
    return params, OuterState(jax.tree.map(jnp.copy, params), velocity)


def with_outer_state(
    optimizer: Callable[[Hyper], optax.GradientTransformation],
) -> Callable[[Hyper], optax.GradientTransformation]:
    """Add the outer optimiser's state to an optimiser; gradient steps do not change that state."""

    def wrapped(hyper: Hyper) -> optax.GradientTransformation:
        inner = optimizer(hyper)

        def init(params: Params) -> WithOuter:
            anchor = jax.tree.map(jnp.copy, params)
            momentum = jax.tree.map(jnp.zeros_like, params)
            return WithOuter(inner.init(params), OuterState(anchor, momentum))

        def update(
            updates: PyTree, state: WithOuter, params: PyTree | None = None, **extra: Any
        ) -> tuple[PyTree, WithOuter]:
            updates, inner_state = inner.update(updates, state.inner, params, **extra)
            return updates, state._replace(inner=inner_state)

        return type(inner)(init, update)

    return wrapped
