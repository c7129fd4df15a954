"""Retrace targets: n-step targets with truncated importance ratios (Munos et al. 2016)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn.losses import (
    epsilon_greedy_policy,
    is_masked,
    retrace_target,
    truncated_importance_ratio,
)
from jaxdqn.types import Array, Path


def retrace_targets(path: Path, values: Array, selector: Array, epsilon: float) -> Array:
    """Return the targets ``[B]`` of paths; no gradient flows.

    The target policy is epsilon-greedy with respect to ``selector``. Each step after the first is
    weighted by the probability of its action under the target policy, divided by that under the
    behaviour policy. The ratio is truncated at 1, which bounds the variance of the product.

    Args:
      path: steps of B returns.
      values: ``[B, N, A]`` float32, Q-values that evaluate the policy, ``ILLEGAL`` for illegal
        actions.
      selector: ``[B, N, A]`` float32, Q-values that define the policy; equal to ``values`` without
        double Q-learning.
      epsilon: epsilon of the target policy.
    """
    epsilon_t, limit = jnp.float32(epsilon), jnp.float32(1)
    # The trace of a step is the ratio of the next step's action; the last step has none.
    continues = jnp.concatenate(
        [path.included[:, 1:], jnp.zeros_like(path.included[:, :1])], axis=1
    )

    def of_row(inputs: Any) -> tuple[Array, Array, Array]:
        q, chooses, action, behaviour, legal, goes_on = inputs
        policy = epsilon_greedy_policy(chooses, epsilon_t, legal)
        ratio = truncated_importance_ratio(
            policy[action], jnp.where(goes_on, behaviour, 1.0), limit
        )
        # Not a matrix product, because accelerators compute those in lower precision.
        return jnp.sum(policy * q), q[action], jnp.where(goes_on, ratio, 0.0)

    legal = path.legal_t if is_masked(path.legal_t) else ()
    inputs = (values, selector, path.a_t, path.behaviour_prob_t, legal, continues)
    value, taken, traces = jax.vmap(jax.vmap(of_row))(inputs)
    return jax.vmap(retrace_target)(path.r_t, path.discount_t, value, taken, traces)
