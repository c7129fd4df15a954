"""TD errors and losses on them, one example at a time."""

from __future__ import annotations

import chex
import jax.numpy as jnp

from jaxdqn.types import Array


def td_error(q_tm1: Array, a_tm1: Array, target: Array) -> Array:
    """Return ``target - q_tm1[a_tm1]``.

    Args:
      q_tm1: ``[A]`` float32
      a_tm1: ``[]`` int32
      target: ``[]`` float32
    """
    chex.assert_rank([q_tm1, a_tm1, target], [1, 0, 0])
    # A selection instead of an index. The gradient of an index is a scatter, which on a GPU needs a
    # separate kernel after one that writes zeros. The results are bitwise identical.
    chosen = jnp.arange(q_tm1.shape[0], dtype=jnp.int32) == a_tm1
    return target - jnp.sum(jnp.where(chosen, q_tm1, 0.0))


def squared_loss(td: Array) -> Array:
    """Return ``0.5 * td**2``, whose gradient is the TD error itself.

    Args:
      td: ``[]`` float32
    """
    chex.assert_rank(td, 0)
    return 0.5 * jnp.square(td)


def huber_loss(td: Array, delta: Array) -> Array:
    """Return the Huber loss: ``0.5 * td**2`` up to ``delta``, linear beyond (Huber 1964).

    Args:
      td: ``[]`` float32
      delta: ``[]`` float32, above 0; if infinite, the result is the squared loss.
    """
    chex.assert_rank([td, delta], [0, 0])
    size = jnp.abs(td)
    inside = jnp.minimum(size, delta)
    # The gradient of a minimum is halved where its arguments are equal. In this product the
    # two halves add up to the correct gradient, delta, also at |td| = delta.
    return inside * (size - 0.5 * inside)


def weighted_mean(losses: Array, weights: Array) -> Array:
    """Return ``mean(weights * losses)``: the divisor is always B, not the sum of the weights.

    Importance weights are at most 1 and are meant to scale steps down (Schaul et al. 2016,
    section 3.4). Dividing by their sum would undo that.

    Args:
      losses: ``[B]`` float32
      weights: ``[B]`` float32
    """
    chex.assert_rank([losses, weights], [1, 1])
    return jnp.mean(weights * losses)
