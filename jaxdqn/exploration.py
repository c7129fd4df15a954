"""How acting departs from greedy: schedules, a ladder over environments, the draws."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, Exploration


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
        or constant, which is ``end``.
      start: ``[]`` float32
      end: ``[]`` float32, held after ``decay_rows``; above 0 if exponential.
      decay_rows: rows.
      rows: ``[]`` float32
    """
    done = jnp.clip(rows / decay_rows, 0.0, 1.0)
    if kind == "linear":
        return start + done * (end - start)
    if kind == "exponential":
        return start * (end / start) ** done
    return end


def epsilon_ladder(epsilon: Array, alpha: float, index: Array, total: int) -> Array:
    """Return ``epsilon ** (1 + alpha * i / (total - 1))`` (Horgan et al. 2018, eq. 1).

    Args:
      epsilon: ``[]`` float32, of environment 0.
      alpha: the exponent's spread; they use 7.
      index: ``[E]`` int32, each environment's place i among those of all devices.
      total: environments over all devices.
    """
    place = index.astype(jnp.float32) / max(total - 1, 1)
    return epsilon ** (1.0 + alpha * place)


def select_actions(
    kind: Literal["epsilon_greedy", "boltzmann"], key: Array, q: Array, exploration: Exploration
) -> tuple[Array, Array]:
    """Choose an action for each environment, every one with a coin of its own.

    With probability ``epsilon`` the action is uniformly random; otherwise it is
    the greedy one (the first of equals), or under ``boltzmann`` drawn from
    ``softmax(q / temperature)``.

    Args:
      key: is consumed.
      q: ``[E, A]`` float32

    Returns:
      Actions ``[E]`` int32 and the probability ``[E]`` that each had.
    """
    num_envs, num_actions = q.shape
    key_uniform, key_policy = jax.random.split(key)
    # One draw serves coin and action: a random call costs more than its numbers.
    # Scaling 23 random bits favours no action by more than A / 2**23.
    coin, pick = jax.random.uniform(key_uniform, (2, num_envs))
    random = jnp.minimum((pick * num_actions).astype(jnp.int32), num_actions - 1)
    if kind == "boltzmann":
        logits = q / exploration.temperature
        chosen = jax.random.categorical(key_policy, logits).astype(jnp.int32)
        policy = jax.nn.softmax(logits)
    else:
        chosen = jnp.argmax(q, axis=-1).astype(jnp.int32)
        policy = jax.nn.one_hot(chosen, num_actions, dtype=q.dtype)
    epsilon = exploration.epsilon
    actions = jnp.where(coin < epsilon, random, chosen)
    of_action = jnp.take_along_axis(policy, actions[:, None], axis=1)[:, 0]
    return actions, epsilon / num_actions + (1.0 - epsilon) * of_action
