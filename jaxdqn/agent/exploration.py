"""Exploration: epsilon schedules, an epsilon ladder over environments, and action selection."""

from __future__ import annotations

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from jaxdqn.losses.legal import is_masked, legal_values, some_legal
from jaxdqn.types import Array, Exploration, PyTree


def epsilon_schedule(
    kind: Literal["linear", "exponential", "constant"],
    start: Array,
    end: Array,
    decay_rows: int,
    rows: Array,
) -> Array:
    """Return epsilon after ``rows`` rows of learning, counted over all devices.

    Args:
      kind: linear, exponential (``start * (end / start) ** (rows / decay_rows)``),
        or constant (``end``).
      start: ``[]`` float32, epsilon at row 0.
      end: ``[]`` float32, epsilon after ``decay_rows``; above 0 if exponential.
      decay_rows: rows over which epsilon decays.
      rows: ``[]`` float32, rows of learning so far.
    """
    progress = jnp.clip(rows / float(decay_rows), 0.0, 1.0)
    if kind == "linear":
        return start + progress * (end - start)
    if kind == "exponential":
        return start * (end / start) ** progress
    return end


def epsilon_ladder(epsilon: Array, alpha: float, index: Array, total: int) -> Array:
    """Return ``epsilon ** (1 + alpha * i / (total - 1))`` (Horgan et al. 2018, eq. 1).

    Args:
      epsilon: ``[]`` float32, epsilon of environment 0.
      alpha: spread of the exponent; 7 in the paper.
      index: ``[E]`` int32, index i of each environment, counted over all devices.
      total: number of environments over all devices.
    """
    fraction = index.astype(jnp.float32) / max(total - 1, 1)
    return epsilon ** (1.0 + alpha * fraction)


def select_actions(
    kind: Literal["epsilon_greedy", "boltzmann"], key: Array, q: Array, exploration: Exploration
) -> tuple[Array, Array]:
    """Choose an action for each environment, with an independent random number for each.

    With probability ``epsilon`` the action is uniformly random. Otherwise it is the greedy action
    (the first one among equal values), or for ``boltzmann`` a draw from
    ``softmax(q / temperature)``. With a mask, all three choices are restricted to the legal
    actions. If an environment has no legal action, an arbitrary action is returned.

    One random 32-bit word per environment decides both whether to explore and which action to take.
    This is faster than two words: in a scan on CPU 1.0 us against 2.4 us at E=10, and 30 us against
    60 us at E=1024. Boltzmann exploration at E=1024, A=6 takes 80 us against 260 us with Gumbel
    noise.

    Args:
      kind: epsilon_greedy or boltzmann.
      key: random key; consumed.
      q: ``[E, A]`` float32
      exploration: ``epsilon`` [E], ``temperature`` [] for boltzmann, and ``legal`` [E, A] or
        empty.

    Returns:
      Actions ``[E]`` int32, and the probability ``[E]`` float32 of each.
    """
    coins = _coins(key, q.shape[:1])
    if kind == "boltzmann":
        over_envs = jax.vmap(_boltzmann, in_axes=(0, 0, 0, None, 0))
        epsilon, temperature = exploration.epsilon, exploration.temperature
        return over_envs(coins, q, epsilon, temperature, exploration.legal)
    return jax.vmap(_epsilon_greedy)(coins, q, exploration.epsilon, exploration.legal)


def epsilon_greedy(key: Array, q: Array, epsilon: Array, legal: PyTree = ()) -> tuple[Array, Array]:
    """Choose an action for one environment: uniform with probability epsilon, else greedy.

    Args:
      key: random key; consumed.
      q: ``[A]`` float32
      epsilon: ``[]`` float32
      legal: ``[A]`` bool, or empty.

    Returns:
      The action ``[]`` int32, and its probability ``[]`` float32.
    """
    return _epsilon_greedy(_coins(key, ()), q, epsilon, legal)


def boltzmann(key: Array, q: Array, temperature: Array, legal: PyTree = ()) -> tuple[Array, Array]:
    """Choose an action for one environment from ``softmax(q / temperature)``.

    Args:
      key: random key; consumed.
      q: ``[A]`` float32
      temperature: ``[]`` float32, above 0, in units of ``q``.
      legal: ``[A]`` bool, or empty.

    Returns:
      The action ``[]`` int32, and its probability ``[]`` float32.
    """
    return _boltzmann(_coins(key, ()), q, jnp.float32(0.0), temperature, legal)


def repeat_actions(
    key: Array, q: Array, actions: Array, exploration: Exploration
) -> tuple[Array, Array]:
    """Replace epsilon-greedy actions by the previous actions, each with probability ``repeat``.

    Repeated actions explore further than independent actions. This is a simple form of temporally
    extended exploration (Dabney et al. 2021) with geometric durations. A previous action that is no
    longer legal is not repeated.

    Args:
      key: random key; consumed.
      q: ``[E, A]`` float32, Q-values from which ``actions`` were chosen.
      actions: ``[E]`` int32, epsilon-greedy.
      exploration: ``epsilon``, ``repeat`` and ``previous``, each [E], and ``legal`` [E, A] or
        empty.

    Returns:
      Actions ``[E]`` int32, and the probability ``[E]`` float32 of each.
    """
    repeat, count = exploration.repeat, _count(exploration.legal, q.shape[-1])
    if is_masked(exploration.legal):
        q, legal = legal_values(q, exploration.legal), some_legal(exploration.legal)
        possible = jnp.take_along_axis(legal, exploration.previous[:, None], axis=1)[:, 0]
        repeat = jnp.where(possible, repeat, 0.0)
    repeated = jax.random.uniform(key, actions.shape, jnp.float32) < repeat
    actions = jnp.where(repeated, exploration.previous, actions)
    greedy = jnp.argmax(q, axis=-1).astype(jnp.int32)
    prob = exploration.epsilon / count
    prob = prob + jnp.where(actions == greedy, 1.0 - exploration.epsilon, 0.0)
    same = (actions == exploration.previous).astype(jnp.float32)
    return actions, repeat * same + (1.0 - repeat) * prob


def _coins(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw uniform numbers in [0, 1) with a fine resolution near 0.

    ``jax.random.uniform`` has a resolution of 2**-23 everywhere. These numbers have a resolution
    of 2**-32 below 2**-8, so a number below a small epsilon still has enough bits to choose an
    action.
    """
    words = jax.random.bits(key, shape, jnp.uint32).astype(jnp.float32)
    return jnp.minimum(words * 2.0**-32, 1.0 - 2.0**-24)


def _epsilon_greedy(coin: Array, q: Array, epsilon: Array, legal: PyTree) -> tuple[Array, Array]:
    chex.assert_rank([coin, q, epsilon], [0, 1, 0])
    greedy = jnp.argmax(legal_values(q, legal)).astype(jnp.int32)
    action = jnp.where(coin < epsilon, _uniform_action(coin, epsilon, q.shape[0], legal), greedy)
    prob = epsilon / _count(legal, q.shape[0]) + jnp.where(action == greedy, 1.0 - epsilon, 0.0)
    return action, prob


def _boltzmann(
    coin: Array, q: Array, epsilon: Array, temperature: Array, legal: PyTree
) -> tuple[Array, Array]:
    chex.assert_rank([coin, q, epsilon, temperature], [0, 1, 0, 0])
    num_actions = q.shape[0]
    q = legal_values(q, legal)
    weight = jnp.exp((q - jnp.max(q)) / temperature)
    cumulative = jnp.cumsum(weight)
    # A coin of at least epsilon is uniform on [epsilon, 1), so it can invert the cumulative
    # weights.
    threshold = _ratio(coin - epsilon, 1.0 - epsilon) * cumulative[-1]
    sampled = jnp.sum(cumulative[:-1] <= threshold, dtype=jnp.int32)
    if is_masked(legal):
        # A ratio that rounds to 1 would give the last action, which may be illegal.
        last = jnp.max(jnp.where(weight > 0, jnp.arange(num_actions, dtype=jnp.int32), 0))
        sampled = jnp.minimum(sampled, last)
    action = jnp.where(coin < epsilon, _uniform_action(coin, epsilon, num_actions, legal), sampled)
    chosen = jnp.sum(jnp.where(jnp.arange(num_actions, dtype=jnp.int32) == action, weight, 0.0))
    prob = epsilon / _count(legal, num_actions) + (1.0 - epsilon) * chosen / cumulative[-1]
    return action, prob


def _uniform_action(coin: Array, epsilon: Array, num_actions: int, legal: PyTree) -> Array:
    """Return a uniform action, given a coin below epsilon, which is uniform on [0, epsilon)."""
    if not is_masked(legal):
        action = (_ratio(coin, epsilon) * num_actions).astype(jnp.int32)
        return jnp.minimum(action, num_actions - 1)
    # Index of the legal action with this rank: count the actions whose cumulative count is lower.
    cumulative = jnp.cumsum(some_legal(legal), dtype=jnp.int32)
    rank = (_ratio(coin, epsilon) * cumulative[-1].astype(jnp.float32)).astype(jnp.int32)
    return jnp.sum(cumulative <= jnp.minimum(rank, cumulative[-1] - 1), dtype=jnp.int32)


def _count(legal: PyTree, num_actions: int) -> Any:
    """Return the number of legal actions, [...] float32; ``num_actions`` without a mask."""
    if not is_masked(legal):
        return num_actions
    return jnp.sum(some_legal(legal), axis=-1, dtype=jnp.float32)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Return the ratio clipped to [0, 1]; a denominator of 0 gives an unused finite value."""
    return jnp.clip(numerator / jnp.maximum(denominator, 1e-30), 0.0, 1.0)
