"""Updates of the target network: periodic copy, or Polyak averaging."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, Params


def periodic_update(
    params: Params, target: Params, since_target: Array, period: int
) -> tuple[Params, Array]:
    """Copy the parameters to the target at every ``period``-th gradient step (Mnih et al. 2015).

    Call the function once after each gradient step. It selects by ``where``, because under vmap a
    conditional runs both branches anyway.

    Args:
      params: online parameters after the gradient step.
      target: target parameters.
      since_target: ``[]`` int32, gradient steps since the last copy, without the current step.
      period: gradient steps between two copies.

    Returns:
      The target parameters, and the new ``since_target``, which is 0 after a copy.
    """
    since = since_target + 1
    due = since >= period
    target = jax.tree.map(lambda new, old: jnp.where(due, new, old), params, target)
    return target, jnp.where(due, 0, since)


def polyak_update(params: Params, target: Params, tau: Array) -> Params:
    """Move the target by ``tau * (params - target)`` (Lillicrap et al. 2016).

    Args:
      params: the online parameters.
      target: the target parameters.
      tau: ``[]`` float32 in (0, 1].
    """
    return jax.tree.map(lambda new, old: old + tau * (new - old), params, target)
