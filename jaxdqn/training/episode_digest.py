"""Hash of an episode, used to count distinct episodes."""

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
    """Return the digests [N] uint32 after one more step of each episode.

    A step is hashed by a weighted sum of its 32-bit words modulo 2^32. Steps are combined as in
    FNV-1a, with an additional shift that mixes the high bits into the low ones. Among 100 different
    episodes, two have equal digests with a probability of about 1e-6.

    Args:
        digests: [N] uint32, digests of the previous steps.
        obs: [N, O], observations before the step.
        actions: [N] int32, actions of the agent.
        rewards: [N] float32, rewards of the step.
    """
    # Three separate sums: XLA would store a concatenation instead of fusing it with the sum.
    mixed = digests ^ (_sum(obs) + _sum(actions.astype(jnp.int32), 1) + _sum(rewards, 2))
    mixed = mixed * _PRIME
    return mixed ^ (mixed >> np.uint32(15))


def _sum(values: Array, seed: int = 0) -> Array:
    """Return the weighted sum [N] uint32 of the 32-bit words of ``values`` [N, ...].

    The weights are fixed by ``seed`` and odd, so a change of a single word always changes the sum.
    """
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    words = values.astype(jnp.uint32).reshape(len(values), -1)
    weights = np.random.default_rng(seed).integers(0, 2**32, (1, words.shape[1]), np.uint32)
    return jnp.sum(words * (weights | np.uint32(1)), axis=1, dtype=jnp.uint32)
