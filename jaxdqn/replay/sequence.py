"""Uniform replay of sequences of rows, for recurrent networks.

A sequence starts at a slot that is a multiple of ``stride``. Extras, such as a recurrent carry, are
needed only at the start of a sequence, so they are stored only for these slots. Each environment
has ``C = ceil(T / stride)`` of them. *Start* c of an environment is the sequence from slot
``c * stride``, and its flat index is ``c * E + env``. If T is not a multiple of the stride, the
distance from the last start to start 0 is less than the stride.

A start is valid if all L rows of its sequence are stored. Sequences may span episodes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxdqn.replay.ring import RingState, StoredRow, gather_sequences, init_ring, take, write
from jaxdqn.replay.uniform import high_product, validate_sizes
from jaxdqn.types import Array, PyTree, Replay, Row, SampleInfo


class SequenceState(NamedTuple):
    """Ring of rows without extras, and the extras of the rows at the starts."""

    storage: StoredRow
    position: Array
    size: Array
    start_extras: PyTree
    """leaves [C, E, ...]"""

    @property
    def ring(self) -> RingState:
        """The ring of rows."""
        return RingState(self.storage, self.position, self.size)


State = TypeVar("State", bound=Any)


class SequenceSizes(NamedTuple):
    """Static sizes of a replay of sequences."""

    num_envs: int
    num_slots: int
    rows_per_add: int
    length: int
    stride: int

    @property
    def starts(self) -> int:
        """C, number of starts per environment."""
        return -(-self.num_slots // self.stride)

    @property
    def starts_per_add(self) -> int:
        """Maximum number of starts in K consecutive slots, modulo T."""
        wrapping = 1 if self.num_slots % self.stride else 0
        return min(self.starts, -(-self.rows_per_add // self.stride) + wrapping)

    def before(self, slot: Array) -> Array:
        """Return the number of starts in the slots before ``slot``."""
        return (slot + self.stride - 1) // self.stride


def make_sequence(
    *,
    num_envs: int,
    rows_per_env: int,
    rows_per_add: int,
    batch_size: int,
    length: int,
    stride: int = 1,
) -> Replay:
    """Make a uniform replay of sequences of L rows.

    ``sample`` ignores ``gamma`` and returns a ``Row`` with leaves [B, L, ...]; the ``extras``
    [B, ...] belong to the first row of each sequence.

    Args:
      num_envs: E
      rows_per_env: T, above L + K + stride - 1 and a multiple of K
      rows_per_add: K, rows per environment in one ``add``
      batch_size: B
      length: L
      stride: slots from one start to the next

    Raises:
      ValueError: if a size is out of range.
    """
    sizes = validated_sizes(num_envs, rows_per_env, rows_per_add, batch_size, length, stride)

    def init(example_row: Row) -> SequenceState:
        return SequenceState(*init_storage(sizes, example_row))

    def sample(key: Array, state: SequenceState, gamma: Array) -> tuple[Any, SampleInfo]:
        del gamma
        oldest, count = _valid_starts(sizes, state.position, state.size)
        count = count * num_envs
        bits = jax.random.bits(key, (batch_size,), jnp.uint32)
        drawn = high_product(bits, count.astype(jnp.uint32)).astype(jnp.int32)
        start = (oldest + drawn // num_envs) % sizes.starts
        flat = start * num_envs + drawn % num_envs
        probability = jnp.broadcast_to(1.0 / count.astype(jnp.float32), (batch_size,))
        return gather_starts(sizes, state, flat), SampleInfo(flat, probability)

    return Replay(
        init=init,
        add=lambda state, rows: write_sequences(sizes, state, rows),
        sample=sample,
        update=lambda state, indices, priorities: state,
    )


def validated_sizes(
    num_envs: int, rows_per_env: int, rows_per_add: int, batch_size: int, length: int, stride: int
) -> SequenceSizes:
    """Return the sizes of a replay of sequences.

    Raises:
        ValueError: if a size is out of range.
    """
    validate_sizes(
        num_envs=num_envs,
        rows_per_env=rows_per_env,
        rows_per_add=rows_per_add,
        batch_size=batch_size,
        length=length,
        stride=stride,
    )
    return SequenceSizes(num_envs, rows_per_env, rows_per_add, length, stride)


def init_storage(sizes: SequenceSizes, example_row: Row) -> tuple[StoredRow, Array, Array, PyTree]:
    """Return storage, position, size and extras of an empty replay."""
    ring = init_ring(example_row._replace(extras=()), sizes.num_envs, sizes.num_slots)
    start_extras = jax.tree.map(
        lambda leaf: jnp.zeros(
            (sizes.starts, sizes.num_envs, *jnp.shape(leaf)), jnp.asarray(leaf).dtype
        ),
        example_row.extras,
    )
    return ring.rows, ring.position, ring.size, start_extras


def write_sequences(sizes: SequenceSizes, state: State, rows: Row) -> State:
    """Write rows [K, E, ...] over the oldest slots, and the extras of the rows at starts.

    ``state`` is a ``SequenceState`` or another state with the same fields, here and in
    ``gather_starts``.
    """
    starts, offsets = starts_from(sizes, state.position)
    # Starts after the K slots get an index past the end, where the scatter drops them.
    past = sizes.starts + jnp.arange(starts.size, dtype=jnp.int32)
    written = offsets < sizes.rows_per_add
    target = jnp.where(written, starts, past)
    source = jnp.where(written, offsets, 0)

    def put(leaf: Array, new: Array) -> Array:
        return leaf.at[target].set(new[source], mode="drop", unique_indices=True)

    ring = write(state.ring, rows._replace(extras=()))
    return state._replace(
        storage=ring.rows,
        position=ring.position,
        size=ring.size,
        start_extras=jax.tree.map(put, state.start_extras, rows.extras),
    )


def gather_starts(sizes: SequenceSizes, state: Any, flat: Array) -> Row:
    """Gather the sequences at flat indices [B] of starts: leaves [B, L, ...], extras [B, ...]."""
    num_envs = sizes.num_envs
    first_row = flat // num_envs * (sizes.stride * num_envs) + flat % num_envs
    rows = gather_sequences(state.ring, first_row, length=sizes.length)
    return rows._replace(extras=jax.tree.map(lambda leaf: take(leaf, flat), state.start_extras))


def _valid_starts(sizes: SequenceSizes, position: Array, size: Array) -> tuple[Array, Array]:
    """Return the oldest valid start and the number of valid starts, per environment.

    The valid starts are consecutive, modulo C, and the same in all environments. The oldest may be
    C, which means 0.
    """
    oldest_slot = (position - size) % sizes.num_slots
    # Slots of valid starts before the modulo: oldest_slot <= slot < end, with end <= 2 T.
    end = oldest_slot + jnp.maximum(size - sizes.length + 1, 0)
    before_end = jnp.where(
        end <= sizes.num_slots,
        sizes.before(end),
        sizes.starts + sizes.before(end - sizes.num_slots),
    )
    oldest = sizes.before(oldest_slot)
    return oldest, before_end - oldest


def starts_from(sizes: SequenceSizes, slot: Array) -> tuple[Array, Array]:
    """Return the next ``starts_per_add`` starts from a slot, and their distances in slots."""
    index = sizes.before(slot) + jnp.arange(sizes.starts_per_add, dtype=jnp.int32)
    wrapped = index // sizes.starts
    starts = index % sizes.starts
    return starts, wrapped * sizes.num_slots + starts * sizes.stride - slot
