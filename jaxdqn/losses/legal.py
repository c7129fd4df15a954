"""Masks of legal actions: action values in which an illegal action is never the greatest."""

from __future__ import annotations

import jax.numpy as jnp

from jaxdqn.types import Array, PyTree

ILLEGAL = -1e30
"""Value of an illegal action. It is finite, so that its product with the probability 0 is 0 and not
NaN, and far below every value of a legal one: a softmax gives it the probability 0 exactly."""


def is_masked(legal: PyTree) -> bool:
    """Return whether there is a mask; it is empty, ``()``, where every action is legal."""
    return not isinstance(legal, tuple)


def some_legal(legal: Array) -> Array:
    """Return the mask with every action legal where none is.

    An episode may end in a state without a legal action. The action there is void, and its value is
    not used after a terminal state; after a truncated one it is that of the greatest Q.

    Args:
      legal: ``[..., A]`` bool
    """
    return legal | ~jnp.any(legal, axis=-1, keepdims=True)


def legal_values(values: Array, legal: PyTree) -> Array:
    """Return the values with ``ILLEGAL`` for illegal actions; unchanged without a mask.

    Its maximum, argmax, softmax and log-sum-exp are those over the legal actions.

    Args:
      values: ``[..., A]`` float32
      legal: ``[..., A]`` bool, or ``()`` where every action is legal.
    """
    if not is_masked(legal):
        return values
    return jnp.where(some_legal(legal), values, jnp.float32(ILLEGAL))
