"""Heads: from features to action values."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxdqn.types import Array


class LinearHead(nn.Module):
    """One value for each action: ``[B, F] -> [B, A]``.

    Always float32: bfloat16 keeps 8 bits, so values near 100 would be 0.5 apart,
    more than the TD errors made of them.
    """

    num_actions: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Return the action values, float32."""
        return nn.Dense(self.num_actions)(features.astype(jnp.float32))
