"""Bootstrap targets, one example at a time."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxdqn.types import Array


def q_learning_target(r_t: Array, discount_t: Array, q_t: Array) -> Array:
    """Return ``r_t + discount_t * max_a q_t[a]`` (Mnih et al. 2015); no gradient flows.

    Args:
      r_t: ``[]`` float32, the (n-step) return.
      discount_t: ``[]`` float32, gamma^m, or 0 after a terminal state.
      q_t: ``[A]`` float32, the target network at the bootstrap observation.
    """
    chex.assert_rank([r_t, discount_t, q_t], [0, 0, 1])
    return jax.lax.stop_gradient(r_t + discount_t * jnp.max(q_t))


def double_q_target(r_t: Array, discount_t: Array, q_t_value: Array, q_t_selector: Array) -> Array:
    """Return ``r_t + discount_t * q_t_value[argmax_a q_t_selector[a]]``; no gradient flows.

    Double Q-learning (van Hasselt et al. 2016, eq. 4).

    Args:
      r_t: ``[]`` float32, the (n-step) return.
      discount_t: ``[]`` float32, gamma^m, or 0 after a terminal state.
      q_t_value: ``[A]`` float32, the target network, which evaluates.
      q_t_selector: ``[A]`` float32, the online network, which chooses.
    """
    chex.assert_rank([r_t, discount_t, q_t_value, q_t_selector], [0, 0, 1, 1])
    chosen = jnp.argmax(q_t_selector)
    return jax.lax.stop_gradient(r_t + discount_t * q_t_value[chosen])
