"""Digest of an episode, by which equal episodes are counted once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.types import Array

_PRIME = np.uint32(0x9E3779B1)


def empty_digests(episodes: int) -> Array:
    """Return the digests [N] uint32 of episodes without steps."""
    return jnp.zeros(episodes, jnp.uint32)


def add_step(digests: Array, obs: Array, actions: Array, rewards: Array) -> Array:
    """Return the digests [N] uint32 after one more step.

    A step is a weighted sum of its 32-bit words modulo 2^32, and steps are combined as in FNV-1a,
    with a shift that mixes the high bits into the low ones. Two different episodes of 100 have
    equal digests with a probability near 1e-6.

    Args:
        digests: [N] uint32, of the steps before.
        obs: [N, O], the observations in which the agent acted.
        actions: [N] int32, of the agent.
        rewards: [N] float32
    """
    words = jnp.concatenate(
        [_words(obs), _words(actions.astype(jnp.int32)), _words(rewards)], axis=1
    )
    mixed = (digests ^ jnp.sum(words * _weights(words.shape[1]), axis=1, dtype=jnp.uint32)) * _PRIME
    return mixed ^ (mixed >> np.uint32(15))


def _words(values: Array) -> Array:
    """Return the values [N, ...] as words [N, n] uint32."""
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    return values.astype(jnp.uint32).reshape(len(values), -1)


def _weights(size: int) -> Array:
    """Return fixed odd weights [1, size]: a difference in a single word always changes the sum."""
    words = np.random.default_rng(size).integers(0, 2**32, (1, size), np.uint32)
    return jnp.asarray(words | np.uint32(1))
