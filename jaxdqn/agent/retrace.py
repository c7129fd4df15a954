"""Targets of paths with truncated importance ratios: Retrace (Munos et al. 2016)."""

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

    The policy is epsilon-greedy in ``selector``. Each step after the first counts by the ratio of
    the policy's probability of its action to that of the behaviour, truncated at 1, so that the
    product of ratios has a bounded variance.

    Args:
      path: the steps.
      values: ``[B, N, A]`` float32, Q by which the policy is evaluated, ``ILLEGAL`` for illegal
        actions.
      selector: ``[B, N, A]`` float32, Q by which the policy chooses; the same without double
        Q-learning.
      epsilon: of the policy.
    """
    epsilon_t, limit = jnp.float32(epsilon), jnp.float32(1)
    # The trace of a step is the ratio of the action of the next step, if the return has one.
    continues = jnp.concatenate(
        [path.included[:, 1:], jnp.zeros_like(path.included[:, :1])], axis=1
    )

    def of_row(inputs: Any) -> tuple[Array, Array, Array]:
        q, chooses, action, behaviour, legal, goes_on = inputs
        policy = epsilon_greedy_policy(chooses, epsilon_t, legal)
        ratio = truncated_importance_ratio(
            policy[action], jnp.where(goes_on, behaviour, 1.0), limit
        )
        # A sum, because accelerators multiply matrices in lower precision.
        return jnp.sum(policy * q), q[action], jnp.where(goes_on, ratio, 0.0)

    legal = path.legal_t if is_masked(path.legal_t) else ()
    inputs = (values, selector, path.a_t, path.behaviour_prob_t, legal, continues)
    value, taken, traces = jax.vmap(jax.vmap(of_row))(inputs)
    return jax.vmap(retrace_target)(path.r_t, path.discount_t, value, taken, traces)
