"""Initial priorities of rows, computed by the actor (Horgan et al. 2018, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp

from jaxdqn.config.config import Config
from jaxdqn.config.loss_registry import LOSSES
from jaxdqn.errors import reject
from jaxdqn.replay.prioritized import (
    PrioritizedState,
    count_generations,
    entering_rows,
    generation_of,
)
from jaxdqn.replay.ring import returns_at, take
from jaxdqn.training.dqn import priority_of
from jaxdqn.types import Array, PyTree, Replay, Row

InitialPriorities = Literal["actor", "max"]
"""actor: |TD error| computed by the actor. max: the maximum priority so far."""


class Estimates(NamedTuple):
    """Values of a row under the parameters of its actor; the ``extras`` of rows on Ray."""

    taken: Array
    """[...] float32, Q of the action taken"""
    greatest: Array
    """[...] float32, maximum Q"""
    behaviour_prob: PyTree = ()
    """[...] float32, probability of the action taken; empty without importance ratios"""


def initial_priorities_of(config: Config, asked: InitialPriorities | None) -> InitialPriorities:
    """Return the kind of initial priorities; for None it depends on the loss.

    Raises:
      ValueError: for ``actor`` with a distributional loss, whose errors are not on the scale of Q.
    """
    linear = LOSSES[config.loss].head == "linear"
    if asked == "actor" and not linear:
        reject("initial_priorities", asked, f"'max' with loss={config.loss!r}, whose errors are "
               "not those of Q")  # fmt: skip
    return asked or ("actor" if linear else "max")


def with_estimates(rows: Row) -> Row:
    """Replace the extras of rows, Q [..., A] and the probabilities of actions, by ``Estimates``."""
    q, behaviour_prob = rows.extras
    taken = jnp.take_along_axis(q, rows.action[..., None], axis=-1)[..., 0]
    return rows._replace(extras=Estimates(taken, jnp.max(q, axis=-1), behaviour_prob))


def example_extras(config: Config, initial: InitialPriorities) -> PyTree:
    """Return the extras of a row of zeros in a shard."""
    zero = jnp.float32(0)
    behaviour_prob = zero if config.importance_ratios else ()
    return Estimates(zero, zero, behaviour_prob) if initial == "actor" else behaviour_prob


def behaviour_prob_of(extras: PyTree) -> Array:
    """Return the probabilities of actions from the extras of the rows of a shard."""
    return extras.behaviour_prob if isinstance(extras, Estimates) else extras


def make_initial_priorities(
    config: Config, replay: Replay, num_envs: int
) -> Callable[[PrioritizedState, int], PrioritizedState]:
    """Make ``set_initial(ring, length) -> ring``.

    The newest ``length`` vector steps make some rows sampleable. The function sets the priorities
    of these rows from their n-step TD errors |r + gamma^m max Q - Q|. The ring must hold more than
    ``length`` + N vector steps.

    Args:
      config: configuration of the run.
      replay: replay functions of the ring.
      num_envs: E, number of environments of the ring.
    """
    num_rows = num_envs * config.replay_rows
    generations = count_generations(num_rows)

    def set_initial(state: PrioritizedState, length: int) -> PrioritizedState:
        ring = state.ring
        start, valid = entering_rows(ring, length, config.n_step)
        steps = (start + jnp.arange(length, dtype=jnp.int32)) % config.replay_rows
        flat = (steps[:, None] * num_envs + jnp.arange(num_envs, dtype=jnp.int32)[None]).ravel()
        gamma = jnp.float32(config.gamma)
        r_t, discount_t, bootstrap = returns_at(ring, flat, gamma, n_step=config.n_step)
        estimates = ring.rows.extras
        greatest = take(estimates.greatest, bootstrap)
        error = jnp.abs(r_t + discount_t * greatest - take(estimates.taken, flat))
        priorities = priority_of(error, jnp.float32(config.priority_exponent))
        index = flat + num_rows * generation_of(state, flat, generations)
        # The update ignores negative indices, because no row has one.
        return replay.update(state, jnp.where(valid.ravel(), index, -1), priorities)

    return set_initial
