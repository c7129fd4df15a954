"""Prioritised replay of sequences of rows (Kapturowski et al. 2019, section 2.3).

A sum tree has one leaf for each start, at the flat index of the start (``jaxdqn.replay.sequence``).
Invariant: the leaf of a valid start is the priority of its sequence, which is positive; all other
leaves are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxdqn.replay.prioritized import (
    count_generations,
    draw_proportional,
    generation_of,
    make_priority_update,
)
from jaxdqn.replay.ring import RingState, StoredRow
from jaxdqn.replay.sequence import (
    SequenceSizes,
    gather_starts,
    init_storage,
    starts_from,
    validated_sizes,
    write_sequences,
)
from jaxdqn.replay.sum_tree import FAN_OUT, SumTree, init_tree, set_runs
from jaxdqn.types import Array, PyTree, Replay, Row, SampleInfo


class PrioritizedSequenceState(NamedTuple):
    """``SequenceState`` with the priorities of the valid starts."""

    storage: StoredRow
    position: Array
    size: Array
    start_extras: PyTree
    """leaves [C, E, ...]"""
    tree: SumTree
    """One leaf for each flat index of a start; positive if and only if the start is valid."""
    max_priority: Array
    """[] float32, maximum priority so far, at least 1; the initial priority of new starts"""
    generation: Array
    """[] int32, number of times that the ring has wrapped, modulo ``count_generations``"""

    @property
    def ring(self) -> RingState:
        """The ring of rows."""
        return RingState(self.storage, self.position, self.size)


def make_prioritized_sequence(
    *,
    num_envs: int,
    rows_per_env: int,
    rows_per_add: int,
    batch_size: int,
    length: int,
    stride: int = 1,
    fan_out: int = FAN_OUT,
) -> Replay:
    """Make a prioritised replay of sequences, with the valid starts of ``make_sequence``.

    Draws, generation tags and late priorities work as in ``make_prioritized``, with starts of
    sequences in place of rows.

    Args:
      num_envs: E
      rows_per_env: T, above L + K + stride - 1 and a multiple of K
      rows_per_add: K, rows per environment in one ``add``
      batch_size: B
      length: L
      stride: slots from one start to the next
      fan_out: number of children of a node of the sum tree

    Raises:
      ValueError: if a size is out of range.
    """
    sizes = validated_sizes(num_envs, rows_per_env, rows_per_add, batch_size, length, stride)
    num_leaves = sizes.starts * num_envs
    generations = count_generations(num_leaves)

    def init(example_row: Row) -> PrioritizedSequenceState:
        return PrioritizedSequenceState(
            *init_storage(sizes, example_row),
            tree=init_tree(num_leaves, fan_out),
            max_priority=jnp.float32(1),
            generation=jnp.int32(0),
        )

    def sample(key: Array, state: PrioritizedSequenceState, gamma: Array) -> tuple[Any, SampleInfo]:
        del gamma
        flat, probabilities = draw_proportional(key, state.tree, batch_size)
        indices = flat + num_leaves * generation_of(state, flat, generations, stride)
        return gather_starts(sizes, state, flat), SampleInfo(indices, probabilities)

    return Replay(
        init=init,
        add=_make_prioritized_add(sizes, generations),
        sample=sample,
        update=make_priority_update(num_leaves, generations, stride),
    )


def _make_prioritized_add(
    sizes: SequenceSizes, generations: int
) -> Callable[[PrioritizedSequenceState, Row], PrioritizedSequenceState]:
    """Make ``add``: overwritten starts get priority zero, new valid starts ``max_priority``."""
    num_envs, length, per_add = sizes.num_envs, sizes.length, sizes.rows_per_add

    def run(starts: Array, priority: Array, mask: Array) -> tuple[Array, Array, Array]:
        """Return a run for ``set_runs``: the leaves of consecutive starts in all environments."""
        values = jnp.broadcast_to(priority, (starts.size * num_envs,))
        return starts[0] * num_envs, values, jnp.repeat(mask, num_envs)

    def add(state: PrioritizedSequenceState, rows: Row) -> PrioritizedSequenceState:
        overwritten, offsets = starts_from(sizes, state.position)
        zeroed = run(overwritten, jnp.float32(0), offsets < per_add)
        state = write_sequences(sizes, state, rows)
        # Of the K rows that became sampleable, the oldest is this many rows older than the newest
        # row.
        oldest_age = length + per_add - 2
        entering, offsets = starts_from(sizes, (state.position - 1 - oldest_age) % sizes.num_slots)
        # Early in a run some of these rows do not exist yet.
        stored = oldest_age - offsets < state.size
        entered = run(entering, state.max_priority, (offsets < per_add) & stored)
        wrapped = (state.position == 0).astype(jnp.int32)
        return state._replace(
            tree=set_runs(state.tree, (zeroed, entered), sizes.starts * num_envs),
            generation=(state.generation + wrapped) % generations,
        )

    return add
