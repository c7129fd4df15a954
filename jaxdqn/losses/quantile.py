"""Targets and loss of quantile return distributions (QR-DQN, IQN), one example at a time."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxdqn.losses.targets import bootstrapped
from jaxdqn.types import Array


def quantile_midpoints(count: int) -> Array:
    """Return the fractions of ``count`` evenly spaced quantiles, ``(2 i + 1) / (2 count)``: [Z].

    Dabney et al. 2018a, lemma 2.
    """
    return (jnp.arange(count, dtype=jnp.float32) + 0.5) / count


def quantile_target(r_t: Array, discount_t: Array, quantiles_t: Array, selector_t: Array) -> Array:
    """Return ``r_t + discount_t * theta(a*)``, ``[Z]``; no gradient flows.

    Args:
      r_t: ``[]`` float32, the (n-step) return.
      discount_t: ``[]`` float32, gamma^m, or 0 after a terminal state.
      quantiles_t: ``[A, Z]`` float32, the target network at the bootstrap observation.
      selector_t: ``[A]`` float32, whose argmax is ``a*``.
    """
    chex.assert_rank([r_t, discount_t, quantiles_t, selector_t], [0, 0, 2, 1])
    chosen = quantiles_t[jnp.argmax(selector_t)]
    return jax.lax.stop_gradient(jax.vmap(bootstrapped, (None, None, 0))(r_t, discount_t, chosen))


def quantile_soft_target(
    r_t: Array, discount_t: Array, quantiles_t: Array, q_t: Array, temperature: Array
) -> Array:
    """Return ``r_t + discount_t * sum_a pi(a) (theta(a) - temperature * log pi(a))``, ``[Z]``.

    ``pi`` is the softmax policy of ``q_t``. The soft value is taken for each quantile
    separately, as in Munchausen-IQN (Vieillard et al. 2020, appendix B). No gradient flows.

    Args:
      r_t: ``[]`` float32, the (n-step) return.
      discount_t: ``[]`` float32, gamma^m, or 0 after a terminal state.
      quantiles_t: ``[A, Z]`` float32, the target network at the bootstrap observation.
      q_t: ``[A]`` float32, the mean values that define the policy.
      temperature: ``[]`` float32, above 0, in units of Q.
    """
    chex.assert_rank([r_t, discount_t, quantiles_t, q_t, temperature], [0, 0, 2, 1, 0])
    log_policy = jax.nn.log_softmax(q_t / temperature)
    soft = quantiles_t - temperature * log_policy[:, None]
    value = jnp.sum(jnp.exp(log_policy)[:, None] * soft, axis=0)
    return jax.lax.stop_gradient(jax.vmap(bootstrapped, (None, None, 0))(r_t, discount_t, value))


def quantile_huber_loss(quantiles: Array, fractions: Array, targets: Array, delta: Array) -> Array:
    """Return the quantile Huber loss ``[]``: summed over predictions, averaged over targets.

    The Huber loss is divided by delta and weighted by ``|fraction - 1{target < prediction}|``
    (Dabney et al. 2018b, eq. 3; without the division: 2018a, eq. 10).

    Args:
      quantiles: ``[Z]`` float32, predictions for the action taken.
      fractions: ``[Z]`` float32, the fraction of each prediction.
      targets: ``[Z']`` float32
      delta: ``[]`` float32, above 0; the limit towards 0 is the quantile regression loss.
    """
    chex.assert_rank([quantiles, fractions, targets, delta], [1, 1, 1, 0])
    errors = targets[None, :] - quantiles[:, None]  # [Z, Z']
    size = jnp.abs(errors)
    inside = jnp.minimum(size, delta)
    huber = inside * (size - 0.5 * inside) / delta
    overestimate = jax.lax.stop_gradient((errors < 0).astype(jnp.float32))
    weights = jnp.abs(fractions[:, None] - overestimate)
    return jnp.sum(jnp.mean(weights * huber, axis=1))
