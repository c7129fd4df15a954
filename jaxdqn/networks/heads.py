"""Heads: from features to action values."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxdqn.types import Array


class LinearHead(nn.Module):
    """One value for each action: ``[B, F] -> [B, A]`` float32."""

    num_actions: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Return the action values."""
        values = nn.Dense(self.num_actions, dtype=self.dtype)(features)
        return values.astype(jnp.float32)
