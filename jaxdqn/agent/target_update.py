"""How the target network follows the online one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, Params


def periodic_update(
    params: Params, target: Params, since_target: Array, period: int
) -> tuple[Params, Array]:
    """Replace the target on every ``period``-th gradient step (Mnih et al. 2015).

    Call it once after each gradient step. A ``where`` and not a conditional:
    under vmap both branches would run anyway.

    Args:
      since_target: ``[]`` int32, gradient steps since the last replacement,
        before this one.
      period: gradient steps.

    Returns:
      The target and the new ``since_target``, 0 if it was replaced.
    """
    since = since_target + 1
    due = since >= period
    target = jax.tree.map(lambda new, old: jnp.where(due, new, old), params, target)
    return target, jnp.where(due, 0, since)


def polyak_update(params: Params, target: Params, tau: Array) -> Params:
    """Move the target by ``tau * (params - target)`` (Lillicrap et al. 2016).

    Args:
      tau: ``[]`` float32 in (0, 1].
    """
    return jax.tree.map(lambda new, old: old + tau * (new - old), params, target)
