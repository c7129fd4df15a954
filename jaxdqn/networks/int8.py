"""Parameters rounded to int8, for acting (ActorQ)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, Params, trained_params, with_trained_params

_LEVELS = 127.0


def int8_params(params: Params) -> Params:
    """Round matrices and kernels to int8 precision; the results are float32 parameters.

    Each output channel (last axis) has a scale: its largest magnitude divided by 127. ``jaxdqn
    export --quantize int8`` stores the same weights. Biases and statistics of observations do not
    change. A policy with rounded weights acts almost like the original policy (Krishnan et al.
    2022, "QuaRL", section 3.2, ActorQ).

    Args:
        params: parameters of a network.
    """
    rounded = jax.tree.map(
        lambda leaf: _rounded(leaf) if leaf.ndim >= 2 and leaf.dtype == jnp.float32 else leaf,
        trained_params(params),
    )
    return with_trained_params(params, rounded)


def _rounded(leaf: Array) -> Array:
    largest = jnp.max(jnp.abs(leaf), axis=tuple(range(leaf.ndim - 1)), keepdims=True)
    scale = jnp.where(largest > 0, largest / _LEVELS, 1.0)
    codes = jnp.clip(jnp.round(leaf / scale), -_LEVELS, _LEVELS).astype(jnp.int8)
    return codes.astype(jnp.float32) * scale
