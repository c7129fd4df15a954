"""Uniform replay: every valid start is equally likely, and nothing else is drawn.

The valid starts stand in a FIFO ring of flat indices. A row enters when it
becomes sampleable, N rows after it was written, and leaves from the tail when
it is evicted; so a draw is one random integer and one gather, with no
rejection and no repair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.replay.ring import (
    RingState,
    StoredRow,
    first_at,
    gather_sequences,
    gather_transitions,
    init_ring,
    write,
)
from jaxdqn.types import Array, PyTree, Replay, Row, SampleInfo


class UniformState(NamedTuple):
    """A ring of rows and the FIFO of its valid starts."""

    storage: StoredRow
    position: Array
    size: Array
    starts: Array
    """[(T + K) * E] int32, flat indices; the live ones are ``tail .. tail + count``, wrapping"""
    tail: Array
    """[] int32"""
    count: Array  # type: ignore[assignment]
    """[] int32, valid starts"""

    @property
    def ring(self) -> RingState:
        """The rows alone."""
        return RingState(self.storage, self.position, self.size)


def make_uniform(
    *,
    num_envs: int,
    rows_per_env: int,
    rows_per_add: int,
    batch_size: int,
    n_step: int = 1,
    frame_stack: int = 1,
) -> Replay:
    """Make a uniform replay of n-step transitions.

    A row is a valid start if it is N rows or more older than the newest, its
    successor opens no episode, and its stack of frames is stored. The stack is
    stored for every row until the ring first overwrites one; from then on the
    oldest S - 1 rows serve as context alone.

    Args:
      num_envs: E
      rows_per_env: T, above N + S + K and a multiple of K
      rows_per_add: K, the rows of each environment written at once
      batch_size: B
      n_step: N
      frame_stack: S

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

    def sample(key: Array, state: UniformState, gamma: Array) -> tuple[Any, SampleInfo]:
        info = _draw(key, state, batch_size)
        batch = gather_transitions(
            state.ring, info.indices, gamma, n_step=n_step, frame_stack=frame_stack
        )
        return batch, info

    return Replay(
        init=_make_init(num_envs, rows_per_env, rows_per_add),
        add=_make_add(delay=n_step, context=frame_stack - 1, ends_bar=True),
        sample=sample,
        update=_no_update,
    )


def make_sequence(
    *, num_envs: int, rows_per_env: int, rows_per_add: int, batch_size: int, length: int
) -> Replay:
    """Make a uniform replay of sequences of ``length`` L rows, which may span episodes.

    ``sample`` gives a ``Row`` with leaves [B, L, ...]; its ``gamma`` is not used.

    Raises:
      ValueError: naming the argument, its value and what would be right.
    """
    validate_sizes(
        num_envs=num_envs,
        rows_per_env=rows_per_env,
        rows_per_add=rows_per_add,
        batch_size=batch_size,
        length=length,
    )

    def sample(key: Array, state: UniformState, gamma: Array) -> tuple[Any, SampleInfo]:
        del gamma
        info = _draw(key, state, batch_size)
        return gather_sequences(state.ring, info.indices, length=length), info

    return Replay(
        init=_make_init(num_envs, rows_per_env, rows_per_add),
        add=_make_add(delay=length - 1, context=0, ends_bar=False),
        sample=sample,
        update=_no_update,
    )


def validate_sizes(**arguments: int) -> None:
    """Refuse sizes that no replay can have, naming the argument, its value and what is right."""
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    rows, per_add = arguments["rows_per_env"], arguments["rows_per_add"]
    reach = arguments.get("n_step", arguments.get("length", 0)) + per_add
    reach += arguments.get("frame_stack", 0)
    if rows <= reach:
        raise ValueError(
            f"rows_per_env={rows}: must be above {reach}, the n-step (or sequence) length plus "
            "frame_stack plus rows_per_add"
        )
    if rows % per_add:
        raise ValueError(f"rows_per_env={rows}: must be a multiple of rows_per_add={per_add}")
    if rows * arguments["num_envs"] >= 2**30:
        raise ValueError(f"rows_per_env={rows}: rows_per_env * num_envs must be below 2**30")


def _make_init(
    num_envs: int, rows_per_env: int, rows_per_add: int
) -> Callable[[Row], UniformState]:
    def init(example_row: Row) -> UniformState:
        ring = init_ring(example_row, num_envs, rows_per_env)
        return UniformState(
            storage=ring.rows,
            position=ring.position,
            size=ring.size,
            # Room for K rows more than the ring holds: starts enter before others leave.
            starts=jnp.zeros((rows_per_env + rows_per_add) * num_envs, jnp.int32),
            tail=jnp.int32(0),
            count=jnp.int32(0),
        )

    return init


def _make_add(
    *, delay: int, context: int, ends_bar: bool
) -> Callable[[UniformState, Row], UniformState]:
    """Make ``add``.

    Args:
      delay: rows between a row's writing and its becoming sampleable.
      context: rows at the oldest end that are no starts once rows are evicted.
      ends_bar: whether a row whose successor opens an episode is no start.
    """

    def add(state: UniformState, rows: Row) -> UniformState:
        length, before = rows.first.shape[0], state
        ring = write(state.ring, rows)
        state = state._replace(storage=ring.rows, position=ring.position, size=ring.size)
        state, entered = _append(state, length, delay, ends_bar)
        left = _count_leaving(before, state.starts, length + context)
        return state._replace(
            tail=(before.tail + left) % state.starts.shape[0],
            count=before.count + entered - left,
        )

    return add


def _append(
    state: UniformState, length: int, delay: int, ends_bar: bool
) -> tuple[UniformState, Array]:
    """Write, past the live starts, those that the newest ``length`` rows made sampleable."""
    num_slots, num_envs = state.storage.flags.shape
    order = jnp.arange(length, dtype=jnp.int32)
    age = delay + length - 1 - order  # oldest first
    slots = (state.position - 1 - age) % num_slots
    valid = jnp.broadcast_to((age < state.size)[:, None], (length, num_envs))
    if ends_bar:
        valid = valid & ~first_at(state.ring, (slots + 1) % num_slots)
    flat = slots[:, None] * num_envs + jnp.arange(num_envs, dtype=jnp.int32)[None, :]
    entering = valid.ravel().astype(jnp.int32)
    capacity = state.starts.shape[0]
    place = (state.tail + state.count + jnp.cumsum(entering) - 1) % capacity
    # What does not enter is sent past the end, where the scatter drops it.
    place = jnp.where(valid.ravel(), place, capacity + jnp.arange(entering.size, dtype=jnp.int32))
    starts = state.starts.at[place].set(flat.ravel(), mode="drop", unique_indices=True)
    return state._replace(starts=starts), jnp.sum(entering)


def _count_leaving(before: UniformState, starts: Array, num_slots: int) -> Array:
    """Count the starts, all at the tail, that the last add evicted.

    Those are the starts in the slots written over and the context slots after
    them. They are read from ``starts`` as it is after appending: reading the
    array on both sides of a write would copy it.
    """
    total, num_envs = before.storage.flags.shape
    oldest = jnp.arange(min(num_slots, total) * num_envs, dtype=jnp.int32)
    slots = starts[(before.tail + oldest) % starts.shape[0]] // num_envs
    leaves = (slots - before.position) % total < num_slots
    leaves = leaves & (oldest < before.count) & (before.size == total)
    return jnp.sum(leaves, dtype=jnp.int32)


def _draw(key: Array, state: UniformState, batch_size: int) -> SampleInfo:
    """Draw valid starts with replacement; there must be at least one."""
    bits = jax.random.bits(key, (batch_size,), jnp.uint32)
    draw = _high_product(bits, state.count.astype(jnp.uint32)).astype(jnp.int32)
    index = state.starts[(state.tail + draw) % state.starts.shape[0]]
    probability = 1.0 / state.count.astype(jnp.float32)
    return SampleInfo(indices=index, probabilities=jnp.broadcast_to(probability, (batch_size,)))


def _high_product(bits: Array, count: Array) -> Array:
    """Return ``bits * count // 2**32`` in 32-bit arithmetic: a draw from ``0 .. count - 1``.

    One random call where ``jax.random.randint`` takes three; no value is
    favoured by more than ``count / 2**32``, under 3e-4 at a million starts.

    Args:
      bits: ``[B]`` uint32
      count: ``[]`` uint32
    """
    low, high = bits & 0xFFFF, bits >> 16
    count_low, count_high = count & 0xFFFF, count >> 16
    middle = high * count_low + ((low * count_low) >> 16)
    carried = (middle & 0xFFFF) + low * count_high
    return high * count_high + (middle >> 16) + (carried >> 16)


def _no_update(state: PyTree, indices: Array, priorities: Array) -> PyTree:
    del indices, priorities
    return state
