"""Return distributions on fixed atoms (C51; Bellemare et al. 2017), one example at a time."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxdqn.types import Array


def categorical_mean(logits: Array, atoms: Array) -> Array:
    """Return the mean of each action's distribution: ``[A]``.

    Args:
      logits: ``[A, Z]`` float32
      atoms: ``[Z]`` float32
    """
    chex.assert_rank([logits, atoms], [2, 1])
    return jnp.sum(jax.nn.softmax(logits, axis=1) * atoms[None, :], axis=1)


def categorical_project(positions: Array, probabilities: Array, atoms: Array) -> Array:
    """Project a distribution on other positions onto ``atoms``: ``[Z]``.

    The mass at a position between two atoms is divided between them, in proportion to closeness.
    Mass outside the range of the atoms goes to the nearest end (Bellemare et al. 2017, eq. 7).

    Args:
      positions: ``[Z']`` float32
      probabilities: ``[Z']`` float32, the mass at each position.
      atoms: ``[Z]`` float32, evenly spaced, increasing.
    """
    chex.assert_rank([positions, probabilities, atoms], [1, 1, 1])
    spacing = (atoms[-1] - atoms[0]) / (atoms.shape[0] - 1)
    positions = jnp.clip(positions, atoms[0], atoms[-1])
    distance = jnp.abs(positions[None, :] - atoms[:, None]) / spacing  # [Z, Z']
    return jnp.sum(jnp.clip(1.0 - distance, 0.0, 1.0) * probabilities[None, :], axis=1)


def categorical_target(
    r_t: Array, discount_t: Array, logits_t: Array, selector_t: Array, atoms: Array
) -> Array:
    """Return ``r_t + discount_t * Z(a*)`` projected onto the atoms, ``[Z]``; no gradient flows.

    ``Z(a*)`` is the distribution of the bootstrap action.

    Args:
      r_t: ``[]`` float32, the (n-step) return.
      discount_t: ``[]`` float32, gamma^m, or 0 after a terminal state.
      logits_t: ``[A, Z]`` float32, the target network at the bootstrap observation.
      selector_t: ``[A]`` float32, whose argmax is ``a*``: the means of the target network,
        or of the online network for double Q-learning.
      atoms: ``[Z]`` float32
    """
    chex.assert_rank([r_t, discount_t, logits_t, selector_t, atoms], [0, 0, 2, 1, 1])
    chosen = logits_t[jnp.argmax(selector_t)]
    # With a discount of 0 all mass is at r_t. The distribution is then unused, and may be NaN.
    probabilities = jax.nn.softmax(jnp.where(discount_t == 0, 0.0, chosen))
    projected = categorical_project(r_t + discount_t * atoms, probabilities, atoms)
    return jax.lax.stop_gradient(projected)


def categorical_clipped(
    r_t: Array, discount_t: Array, logits_t: Array, selector_t: Array, atoms: Array
) -> Array:
    """Return the probability ``[]`` of the target outside the range of the atoms.

    The projection moves this probability to the nearest end, which changes the mean of the target.
    It is 0 if the range contains every position of the target.

    Args:
      r_t, discount_t, logits_t, selector_t, atoms: as for ``categorical_target``.
    """
    chex.assert_rank([r_t, discount_t, logits_t, selector_t, atoms], [0, 0, 2, 1, 1])
    chosen = logits_t[jnp.argmax(selector_t)]
    probabilities = jax.nn.softmax(jnp.where(discount_t == 0, 0.0, chosen))
    positions = r_t + discount_t * atoms
    # A thousandth of the spacing exceeds the rounding error of a return at an end of the range.
    slack = 1e-3 * (atoms[1] - atoms[0])
    outside = (positions < atoms[0] - slack) | (positions > atoms[-1] + slack)
    return jax.lax.stop_gradient(jnp.sum(jnp.where(outside, probabilities, 0.0)))


def categorical_loss(logits: Array, target: Array) -> Array:
    """Return the cross-entropy ``[]`` of the predicted distribution relative to the target.

    Args:
      logits: ``[Z]`` float32, the prediction for the action taken.
      target: ``[Z]`` float32, the target's probabilities.
    """
    chex.assert_rank([logits, target], [1, 1])
    return -jnp.sum(target * jax.nn.log_softmax(logits))
