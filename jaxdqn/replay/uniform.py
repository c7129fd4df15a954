"""Uniform replay: only valid starts are drawn, all with equal probability.

A FIFO queue, stored as a ring, holds the flat indices of the valid starts. A row enters at the
head when it becomes sampleable, N rows after it was written. It leaves at the tail when it is
evicted. A draw therefore needs one random integer and one gather, and never has to reject or
replace an invalid row.

Rows enter the queue in the order of their slots and are evicted in the same order, so the rows to
evict are always at the tail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.replay.paths import make_gather
from jaxdqn.replay.ring import RingState, StoredRow, first_at, init_ring, write
from jaxdqn.types import Array, PyTree, Replay, Row, SampleInfo


class UniformState(NamedTuple):
    """Ring of rows, and the FIFO queue of its valid starts.

    Invariant: entries ``tail .. tail + count - 1`` of ``starts``, modulo its length, list every
    valid start exactly once, oldest slot first.
    """

    storage: StoredRow
    position: Array
    size: Array
    starts: Array
    """[(T + K) * E] int32, flat indices; entries outside the queue are stale"""
    tail: Array
    """[] int32, position of the oldest valid start in ``starts``"""
    count: Array  # type: ignore[assignment]
    """[] int32, number of valid starts"""

    @property
    def ring(self) -> RingState:
        """The ring of rows."""
        return RingState(self.storage, self.position, self.size)


def make_uniform(
    *,
    num_envs: int,
    rows_per_env: int,
    rows_per_add: int,
    batch_size: int,
    n_step: int = 1,
    frame_stack: int = 1,
    paths: bool = False,
) -> Replay:
    """Make a uniform replay of n-step transitions.

    A row is a valid start if three conditions hold:

    - it is at least N rows older than the newest row;
    - its successor does not open an episode (otherwise it holds an episode's final observation,
      and its action is invalid);
    - its stack of S frames is stored. Until the ring first overwrites a row, this holds for every
      row, because frames before the first row are zero. From then on the oldest S - 1 rows serve
      only as context for the stacks of later rows.

    Args:
      num_envs: E
      rows_per_env: T, above N + S + K and a multiple of K
      rows_per_add: K, rows per environment in one ``add``
      batch_size: B
      n_step: N
      frame_stack: S
      paths: True for batches with ``Batch.path``; the extras of a row are then the probability of
        its action.

    Raises:
      ValueError: if a size is out of range.
    """
    validate_sizes(
        num_envs=num_envs,
        rows_per_env=rows_per_env,
        rows_per_add=rows_per_add,
        batch_size=batch_size,
        n_step=n_step,
        frame_stack=frame_stack,
    )

    gather = make_gather(n_step=n_step, frame_stack=frame_stack, paths=paths)

    def sample(key: Array, state: UniformState, gamma: Array) -> tuple[Any, SampleInfo]:
        info = _draw(key, state, batch_size)
        return gather(state.ring, info.indices, gamma), info

    return Replay(
        init=_make_init(num_envs, rows_per_env, rows_per_add),
        add=_make_add(delay=n_step, context=frame_stack - 1, exclude_final=True),
        sample=sample,
        update=_no_update,
    )


def validate_sizes(**arguments: int) -> None:
    """Check the sizes of a replay.

    Raises:
      ValueError: if a size is out of range; names the argument and the constraint.
    """
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    rows, per_add = arguments["rows_per_env"], arguments["rows_per_add"]
    reach = arguments.get("n_step", arguments.get("length", 0)) + per_add
    reach += arguments.get("frame_stack", 0) + arguments.get("stride", 1) - 1
    if rows <= reach:
        raise ValueError(
            f"rows_per_env={rows}: must be above {reach}, the n-step (or sequence) length plus "
            "frame_stack (or stride - 1) plus rows_per_add"
        )
    if rows % per_add:
        raise ValueError(f"rows_per_env={rows}: must be a multiple of rows_per_add={per_add}")
    # Positions in the queue of starts are int32 sums of a tail, a count and a cumulative sum.
    if (rows + per_add) * arguments["num_envs"] > 2**30:
        raise ValueError(
            f"rows_per_env={rows}: (rows_per_env + rows_per_add) * num_envs must be at most 2**30"
        )


def _make_init(
    num_envs: int, rows_per_env: int, rows_per_add: int
) -> Callable[[Row], UniformState]:
    def init(example_row: Row) -> UniformState:
        ring = init_ring(example_row, num_envs, rows_per_env)
        return UniformState(
            storage=ring.rows,
            position=ring.position,
            size=ring.size,
            # Capacity for K more rows than the ring holds, because new starts enter before old ones
            # leave.
            starts=jnp.zeros((rows_per_env + rows_per_add) * num_envs, jnp.int32),
            tail=jnp.int32(0),
            count=jnp.int32(0),
        )

    return init


def _make_add(
    *, delay: int, context: int, exclude_final: bool
) -> Callable[[UniformState, Row], UniformState]:
    """Make ``add``.

    Args:
      delay: number of newer rows required before a row becomes sampleable.
      context: number of oldest rows that stop being valid starts once the ring overwrites rows.
      exclude_final: True to exclude a row that holds the final observation of an episode, that
        is, a row whose successor opens an episode.
    """

    def add(state: UniformState, rows: Row) -> UniformState:
        # The order matters: write the ring, append to the queue (which reads the new flags), then
        # count the evicted starts in the new queue. After the ring and the queue are replaced, only
        # scalars and shapes of ``before`` are read.
        length, before = rows.first.shape[0], state
        ring = write(state.ring, rows)
        state = state._replace(storage=ring.rows, position=ring.position, size=ring.size)
        state, entered = _append(state, length, delay, exclude_final)
        left = _count_leaving(before, state.starts, length + context)
        return state._replace(
            tail=(before.tail + left) % state.starts.shape[0],
            count=before.count + entered - left,
        )

    return add


def _append(
    state: UniformState, length: int, delay: int, exclude_final: bool
) -> tuple[UniformState, Array]:
    """Append the rows that became sampleable by the newest write; also return their number.

    ``tail`` and ``count`` are not updated.
    """
    num_slots, num_envs = state.storage.flags.shape
    order = jnp.arange(length, dtype=jnp.int32)
    age = delay + length - 1 - order  # [K], in rows older than the newest; oldest first
    slots = (state.position - 1 - age) % num_slots
    # Early in a run some of these rows do not exist yet.
    valid = jnp.broadcast_to((age < state.size)[:, None], (length, num_envs))
    if exclude_final:
        valid = valid & ~first_at(state.ring, (slots + 1) % num_slots)
    flat = slots[:, None] * num_envs + jnp.arange(num_envs, dtype=jnp.int32)[None, :]
    entering = valid.ravel().astype(jnp.int32)
    capacity = state.starts.shape[0]
    # The cumulative sum gives the entering rows consecutive positions after the last start.
    target = (state.tail + state.count + jnp.cumsum(entering, dtype=jnp.int32) - 1) % capacity
    # Invalid rows get distinct positions past the end, where the scatter drops them.
    target = jnp.where(valid.ravel(), target, capacity + jnp.arange(entering.size, dtype=jnp.int32))
    starts = state.starts.at[target].set(flat.ravel(), mode="drop", unique_indices=True)
    return state._replace(starts=starts), jnp.sum(entering, dtype=jnp.int32)


def _count_leaving(before: UniformState, starts: Array, num_slots: int) -> Array:
    """Count the starts that an ``add`` evicts; all are at the tail of the queue.

    They are the starts in the overwritten slots and in the context slots after them.

    Args:
      before: state before the ``add``.
      starts: queue after appending, which still contains the old entries. Reading the queue of
        ``before`` after the append would copy it.
      num_slots: number of overwritten slots plus context slots.
    """
    total, num_envs = before.storage.flags.shape
    # At most this many starts can leave, so only the oldest entries need to be examined.
    oldest = jnp.arange(min(num_slots, total) * num_envs, dtype=jnp.int32)
    slots = starts[(before.tail + oldest) % starts.shape[0]] // num_envs
    leaves = (slots - before.position) % total < num_slots
    # Nothing is overwritten until the ring is full.
    leaves = leaves & (oldest < before.count) & (before.size == total)
    return jnp.sum(leaves, dtype=jnp.int32)


def _draw(key: Array, state: UniformState, batch_size: int) -> SampleInfo:
    """Draw valid starts uniformly, with replacement; at least one must exist."""
    bits = jax.random.bits(key, (batch_size,), jnp.uint32)
    draw = high_product(bits, state.count.astype(jnp.uint32)).astype(jnp.int32)
    index = state.starts[(state.tail + draw) % state.starts.shape[0]]
    probability = 1.0 / state.count.astype(jnp.float32)
    return SampleInfo(indices=index, probabilities=jnp.broadcast_to(probability, (batch_size,)))


def high_product(bits: Array, count: Array) -> Array:
    """Return ``bits * count // 2**32`` in 32-bit arithmetic, a draw from ``0 .. count - 1``.

    This needs one random call, whereas ``jax.random.randint`` makes three. The relative bias of a
    value is at most ``count / 2**32``, below 3e-4 for a million starts.

    Args:
      bits: ``[B]`` uint32, uniformly random.
      count: ``[]`` uint32, number of values.
    """
    low, high = bits & 0xFFFF, bits >> 16
    count_low, count_high = count & 0xFFFF, count >> 16
    middle = high * count_low + ((low * count_low) >> 16)
    carried = (middle & 0xFFFF) + low * count_high
    return high * count_high + (middle >> 16) + (carried >> 16)


def _no_update(state: PyTree, indices: Array, priorities: Array) -> PyTree:
    del indices, priorities
    return state
