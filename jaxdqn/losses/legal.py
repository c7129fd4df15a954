"""Masks of legal actions, applied to action values so that no illegal action is chosen."""

from __future__ import annotations

import jax.numpy as jnp

from jaxdqn.types import Array, PyTree

ILLEGAL = -1e30
"""Value of an illegal action. It is finite, so that its product with the probability 0 is 0 and not
NaN. It is far below the value of any legal action, so a softmax gives it probability 0 exactly."""


def is_masked(legal: PyTree) -> bool:
    """Return whether there is a mask; ``()`` means that every action is legal."""
    return not isinstance(legal, tuple)


def some_legal(legal: Array) -> Array:
    """Return the mask, with every action legal in states without a legal action.

    An episode may end in a state without a legal action, where any action is invalid. The values
    of a terminal state are not used. If such a state is the last of a truncated episode, the
    bootstrap value is taken over all actions.

    Args:
      legal: ``[..., A]`` bool
    """
    return legal | ~jnp.any(legal, axis=-1, keepdims=True)


def legal_values(values: Array, legal: PyTree) -> Array:
    """Return the values with ``ILLEGAL`` for illegal actions; unchanged without a mask.

    Maximum, argmax, softmax and log-sum-exp of the result range over the actions of ``some_legal``.

    Args:
      values: ``[..., A]`` float32
      legal: ``[..., A]`` bool, or ``()`` if every action is legal.
    """
    if not is_masked(legal):
        return values
    return jnp.where(some_legal(legal), values, jnp.float32(ILLEGAL))
