"""Prioritised replay (Schaul et al. 2016): valid starts are drawn in proportion to their priority.

A sum tree has a leaf for every row of the ring. The leaf is the row's priority
while the row is a valid start and zero otherwise, so what may not be drawn has
no mass to be drawn by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.replay.ring import RingState, StoredRow, first_at, gather_transitions, init_ring, write
from jaxdqn.replay.sum_tree import (
    FAN_OUT,
    SumTree,
    draw,
    init_tree,
    leaves_at,
    set_leaves,
    set_runs,
    total,
)
from jaxdqn.replay.uniform import validate_sizes
from jaxdqn.types import Array, Replay, Row, SampleInfo

_LEAST = 1e-30
"""A priority of zero would take its row out for good."""
_INDICES = 2**31


class PrioritizedState(NamedTuple):
    """A ring of rows and the priorities of its valid starts."""

    storage: StoredRow
    position: Array
    size: Array
    tree: SumTree
    """a leaf for each flat index"""
    max_priority: Array
    """[] float32, the greatest priority there has been; new rows enter with it"""
    generation: Array
    """[] int32, times that the ring went round, modulo as many as an index can tell apart"""

    @property
    def ring(self) -> RingState:
        """The rows alone."""
        return RingState(self.storage, self.position, self.size)


def make_prioritized(
    *,
    num_envs: int,
    rows_per_env: int,
    rows_per_add: int,
    batch_size: int,
    n_step: int = 1,
    frame_stack: int = 1,
    fan_out: int = FAN_OUT,
) -> Replay:
    """Make a prioritised replay of n-step transitions, with the valid starts of ``make_uniform``.

    ``sample`` stratifies: the b-th row of a batch is drawn from the b-th of B equal parts of
    the priorities' sum (appendix B.2.1 of the paper). ``update`` takes the priorities as they
    are, exponent and all. It changes only rows that are still what was drawn: one that has
    been written over since, or has become context, stays out. The indices it takes are
    those of ``SampleInfo`` and tell generations of the ring apart, 2^31 rows back.

    Args:
      num_envs: E
      rows_per_env: T, above N + S + K and a multiple of K
      rows_per_add: K, the rows of each environment written at once
      batch_size: B
      n_step: N
      frame_stack: S
      fan_out: children of a node of the sum tree

    Raises:
      ValueError: naming the argument, its value and what would be right.
    """
    validate_sizes(
        num_envs=num_envs,
        rows_per_env=rows_per_env,
        rows_per_add=rows_per_add,
        batch_size=batch_size,
        n_step=n_step,
        frame_stack=frame_stack,
    )
    num_rows = num_envs * rows_per_env
    generations = count_generations(num_rows)

    def init(example_row: Row) -> PrioritizedState:
        ring = init_ring(example_row, num_envs, rows_per_env)
        return PrioritizedState(
            storage=ring.rows,
            position=ring.position,
            size=ring.size,
            tree=init_tree(num_rows, fan_out),
            max_priority=jnp.float32(1),
            generation=jnp.int32(0),
        )

    def sample(key: Array, state: PrioritizedState, gamma: Array) -> tuple[Any, SampleInfo]:
        flat, probabilities = _draw(key, state.tree, batch_size)
        batch = gather_transitions(state.ring, flat, gamma, n_step=n_step, frame_stack=frame_stack)
        indices = flat + num_rows * _generation_of(state, flat, generations)
        return batch, SampleInfo(indices=indices, probabilities=probabilities)

    def update(state: PrioritizedState, indices: Array, priorities: Array) -> PrioritizedState:
        flat, generation = indices % num_rows, indices // num_rows
        same = generation == _generation_of(state, flat, generations)
        # What is no valid start has a leaf of zero, and keeps it.
        live = same & (leaves_at(state.tree, flat) > 0)
        priorities = jnp.maximum(priorities.astype(jnp.float32), _LEAST)
        past = state.tree.levels[0].size
        return state._replace(
            tree=set_leaves(state.tree, jnp.where(live, flat, past), priorities),
            max_priority=jnp.maximum(
                state.max_priority, jnp.max(jnp.where(live, priorities, _LEAST))
            ),
        )

    return Replay(
        init=init,
        add=_make_add(n_step, frame_stack - 1, generations),
        sample=sample,
        update=update,
    )


def count_generations(num_rows: int) -> int:
    """Return how many generations of a ring of ``num_rows`` an int32 index tells apart."""
    return _INDICES // num_rows


def importance_weights(
    probabilities: Array, exponent: Array, greatest: Callable[[Array], Array]
) -> Array:
    """Return ``(n P(i))^-exponent`` over its maximum (Schaul et al. 2016, section 3.4).

    Over D devices a row of device d is drawn with probability ``P_d(i) / D``, so that the
    weights of the mixture are in proportion to ``P_d(i)^-exponent`` on every device, and
    the number of rows cancels: only the maximum has to be found over all devices.

    Args:
      probabilities: ``[B]`` float32, of each draw under its own device's replay.
      exponent: ``[]`` float32, beta: 0 for no correction, 1 for all of it.
      greatest: maximum over devices.
    """
    least = -greatest(-jnp.min(probabilities))
    return (least / probabilities) ** exponent


def _make_add(
    delay: int, context: int, generations: int
) -> Callable[[PrioritizedState, Row], PrioritizedState]:
    """Make ``add``.

    Args:
      delay: rows between a row's writing and its becoming sampleable.
      context: rows at the oldest end that are no starts once rows are evicted.
      generations: that an index can tell apart.
    """

    def add(state: PrioritizedState, rows: Row) -> PrioritizedState:
        length, before = rows.first.shape[0], state
        ring = write(state.ring, rows)
        num_slots, num_envs = ring.rows.flags.shape
        leaving = (length + context) * num_envs
        full = before.size == num_slots
        # Until rows are evicted the slots ahead are empty, or keep their whole stack.
        out = (
            before.position * num_envs,
            jnp.zeros(leaving, jnp.float32),
            full | (jnp.arange(leaving, dtype=jnp.int32) < length * num_envs),
        )
        start, entering = _entering(ring, length, delay)
        into = (
            start * num_envs,
            jnp.full(entering.size, state.max_priority),
            entering.ravel(),
        )
        wrapped = (ring.position == 0).astype(jnp.int32)
        return state._replace(
            storage=ring.rows,
            position=ring.position,
            size=ring.size,
            tree=set_runs(state.tree, (out, into), num_slots * num_envs),
            generation=(state.generation + wrapped) % generations,
        )

    return add


def _entering(ring: RingState, length: int, delay: int) -> tuple[Array, Array]:
    """Return the oldest slot that the newest rows made sampleable, and which are: [length, E]."""
    num_slots, num_envs = ring.rows.flags.shape
    age = delay + length - 1 - jnp.arange(length, dtype=jnp.int32)  # oldest first
    slots = (ring.position - 1 - age) % num_slots
    stored = jnp.broadcast_to((age < ring.size)[:, None], (length, num_envs))
    return slots[0], stored & ~first_at(ring, (slots + 1) % num_slots)


def _draw(key: Array, tree: SumTree, batch_size: int) -> tuple[Array, Array]:
    """Draw a leaf from each of B equal parts of the sum; return indices and probabilities."""
    mass = total(tree)
    bits = jax.random.bits(key, (batch_size,), jnp.uint32)
    part = mass / batch_size
    strata = jnp.arange(batch_size, dtype=jnp.float32) * part
    # Of 32 bits the 24 that float32 holds exactly; below 1 always.
    offsets = (bits >> 8).astype(jnp.float32) * (math.ldexp(1.0, -24) * part)
    index, leaf = draw(tree, strata, offsets)
    return index, leaf / mass


def _generation_of(state: PrioritizedState, flat: Array, generations: int) -> Array:
    """Return the generation of the rows that stand at flat indices [n]."""
    num_envs = state.storage.flags.shape[1]
    # What has not been written over since the ring last began anew is one older.
    older = (flat // num_envs >= state.position).astype(jnp.int32)
    return (state.generation - older) % generations
