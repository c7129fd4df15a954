"""Ring of rows: storage, writing and gathering.

Storage is time-major, ``[T, E, ...]``. A *slot* is an index on the axis T, and a *flat index* is
``slot * E + env``. The next row of the same environment is at the flat index plus ``E``, modulo
``T * E``.

Three rules let the compiler update a donated ring in place. If one of them is broken, the
compiled iteration copies the complete ring, at least in a step with K = 1 and M = 1:

- Write before gathering, and gather only from the written ring. Reading the ring before the write
  keeps both versions alive.
- Gather with one flat index on the reshaped ring. A gather by ``[slot, env]`` copies the ring.
- Put no conditional around the ring. A ``cond`` that reads and writes it copies the ring, and so
  does a batched ``where``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.replay.packing import pack_bits, unpack_bits
from jaxdqn.types import Array, Batch, PyTree, Row

_FIRST, _TERMINATED, _TRUNCATED = 1, 2, 4


class StoredRow(NamedTuple):
    """Stored form of a row: flags in one byte, booleans packed into bits."""

    obs: PyTree
    """[..., O], or ``PackedBits`` if boolean"""
    flags: Array
    """[...] uint8, the bits ``_FIRST``, ``_TERMINATED`` and ``_TRUNCATED``"""
    action: Array
    """[...] int32"""
    reward: Array
    """[...] float32"""
    extras: PyTree
    legal: PyTree = ()
    """``PackedBits`` of [..., A], or empty"""


class RingState(NamedTuple):
    """Rows of E environments, and the position of the next write.

    Invariant: the stored rows of each environment are in the ``size`` slots before ``position``,
    modulo T; the newest row is in slot ``position - 1``. ``size`` grows from 0 to T. All
    environments share ``position`` and ``size``.
    """

    rows: StoredRow
    """Leaves [T, E, ...]"""
    position: Array
    """[] int32, slot of the next row, a multiple of K"""
    size: Array
    """[] int32, number of stored rows per environment, at most T"""


def init_ring(example_row: Row, num_envs: int, rows_per_env: int) -> RingState:
    """Make an empty ring for rows with the shapes of ``example_row``, which has no leading axes."""
    example = _encode(jax.tree.map(jnp.asarray, example_row), num_leading=0)
    rows = jax.tree.map(
        lambda leaf: jnp.zeros((rows_per_env, num_envs, *leaf.shape), leaf.dtype), example
    )
    return RingState(rows=rows, position=jnp.int32(0), size=jnp.int32(0))


def write(ring: RingState, rows: Row) -> RingState:
    """Write rows ``[K, E, ...]`` over the oldest slots.

    T must be a multiple of K. A write then never wraps around the end, so ``dynamic_update_slice``,
    which clamps its start index, is exact.
    """
    stored = _encode(rows, num_leading=2)
    length, num_slots = stored.flags.shape[0], ring.rows.flags.shape[0]

    def put(leaf: Array, new: Array) -> Array:
        # Explicit int32, because a Python 0 is int64 under jax_enable_x64.
        start = (ring.position,) + (jnp.int32(0),) * (leaf.ndim - 1)
        return jax.lax.dynamic_update_slice(leaf, new, start)

    return RingState(
        rows=jax.tree.map(put, ring.rows, stored),
        position=(ring.position + length) % num_slots,
        size=jnp.minimum(ring.size + length, num_slots),
    )


def first_at(ring: RingState, slots: Array) -> Array:
    """Return [n, E] bool: True where the row at ``slots`` [n] opens an episode."""
    return (ring.rows.flags[slots] & _FIRST).astype(jnp.bool_)


def gather_transitions(
    ring: RingState, index: Array, gamma: Array, *, n_step: int, frame_stack: int
) -> Batch:
    """Gather the n-step transitions that start at valid flat indices.

    Let row 0 be the start, and let step j lead from row j - 1 to row j. A return spans m steps: m
    is the smallest j in 1 .. N at which step j terminates or row j + 1 opens an episode (row j then
    holds the final observation of the episode). If there is no such j, m is N. The return is the
    sum of m discounted rewards, the bootstrap observation is the observation of row m, and the
    discount is gamma^m, or 0 if step m terminates. Row 1 never opens an episode, because the start
    would then be invalid.

    Args:
      ring: the ring of rows.
      index: ``[B]`` int32, flat indices of valid starts.
      gamma: ``[]`` float32, discount factor of one step.
      n_step: N, maximum number of rewards in a return.
      frame_stack: S, number of frames in an observation.
    """
    r_t, discount_t, bootstrap = returns_at(ring, index, gamma, n_step=n_step)
    return Batch(
        obs_tm1=gather_obs(ring, index, frame_stack=frame_stack),
        a_tm1=take(ring.rows.action, index),
        r_t=r_t,
        discount_t=discount_t,
        obs_t=gather_obs(ring, bootstrap, frame_stack=frame_stack),
        extras_tm1=jax.tree.map(lambda leaf: take(leaf, index), ring.rows.extras),
        legal_tm1=unpack_bits(jax.tree.map(lambda leaf: take(leaf, index), ring.rows.legal)),
        legal_t=unpack_bits(jax.tree.map(lambda leaf: take(leaf, bootstrap), ring.rows.legal)),
    )


def returns_at(
    ring: RingState, index: Array, gamma: Array, *, n_step: int
) -> tuple[Array, Array, Array]:
    """Compute returns, discounts and bootstrap rows, as in ``gather_transitions``.

    Returns:
      Returns [B] float32, discounts [B] float32, and flat indices [B] int32 of the bootstrap rows.
    """
    num_rows, num_envs = ring.rows.flags.size, ring.rows.flags.shape[1]
    reward, terminated, included, _ = steps_at(ring, index, n_step=n_step)
    powers = gamma ** jnp.arange(n_step, dtype=jnp.float32)
    ends = jnp.any(terminated & (included > 0), axis=1)
    last = jnp.sum(included, axis=1).astype(jnp.int32) - 1  # m - 1
    bootstrap = (index + (last + 1) * num_envs) % num_rows
    # Rewards past the end are arbitrary, even NaN: replace them, do not multiply by 0.
    r_t = jnp.sum(jnp.where(included > 0, powers[None, :] * reward, 0.0), axis=1)
    return r_t, jnp.where(ends, 0.0, gamma * powers[last]), bootstrap


def steps_at(ring: RingState, index: Array, *, n_step: int) -> tuple[Array, Array, Array, Array]:
    """Return the N steps from each start, defined as in ``gather_transitions``.

    Returns:
      Rewards [B, N] float32; terminations [B, N] bool; inclusion [B, N] float32, 1 for the steps of
      the return, then 0; and flat indices [B, N + 1] int32 of the rows 0 to N.
    """
    num_rows, num_envs = ring.rows.flags.size, ring.rows.flags.shape[1]
    ahead = jnp.arange(n_step + 1, dtype=jnp.int32) * num_envs
    path = (index[:, None] + ahead[None, :]) % num_rows  # [B, N + 1]
    # Entry j of an axis of length N or N + 1 belongs to row j. Its flag ``first`` describes row j,
    # but ``terminated`` and ``reward`` result from its action and so belong to step j + 1.
    flags = take(ring.rows.flags, path)
    reward = take(ring.rows.reward, path[:, :-1])
    terminated = (flags[:, :-1] & _TERMINATED).astype(jnp.bool_)  # [B, N]
    opens = (flags[:, 2:] & _FIRST).astype(jnp.bool_)  # [B, N - 1], rows 2 .. N
    continues = ~(terminated[:, :-1] | opens)
    included = jnp.concatenate([jnp.ones_like(terminated[:, :1]), continues], axis=1)
    # [B, N]: 1 for the steps 1 .. m of the return, then 0.
    included = jnp.cumprod(included.astype(jnp.float32), axis=1)
    return reward, terminated, included, path


def gather_sequences(ring: RingState, index: Array, *, length: int) -> Row:
    """Gather L = ``length`` consecutive rows from each flat index: leaves [B, L, ...]."""
    num_rows, num_envs = ring.rows.flags.size, ring.rows.flags.shape[1]
    ahead = jnp.arange(length, dtype=jnp.int32) * num_envs
    path = (index[:, None] + ahead[None, :]) % num_rows
    return _decode(jax.tree.map(lambda leaf: take(leaf, path), ring.rows))


def in_order(ring: RingState) -> Row:
    """Return the stored rows, oldest first: leaves [size, E, ...]. Cannot be jitted."""
    num_slots, size = ring.rows.flags.shape[0], int(ring.size)
    slots = (int(ring.position) - size + jnp.arange(size, dtype=jnp.int32)) % num_slots
    return _decode(jax.tree.map(lambda leaf: leaf[slots], ring.rows))


def gather_obs(ring: RingState, index: Array, *, frame_stack: int) -> Array:
    """Gather observations [B, O], or stacks of S frames [B, O, S] with the newest frame last.

    Frames before the first row of the episode are zero. Until the ring is full, frames before the
    oldest stored row are zero too. Later, the complete stack of every valid start is stored.
    """
    if frame_stack == 1:
        return unpack_bits(jax.tree.map(lambda leaf: take(leaf, index), ring.rows.obs))
    num_slots, num_envs = ring.rows.flags.shape
    back = jnp.arange(frame_stack - 1, -1, -1, dtype=jnp.int32)  # S - 1, ..., 0
    path = (index[:, None] - back[None, :] * num_envs) % (num_slots * num_envs)
    opens = (take(ring.rows.flags, path) & _FIRST).astype(jnp.int32)  # [B, S]
    # A frame belongs to the episode if no later row of the stack opens an episode.
    openings_after = jnp.cumsum(opens[:, ::-1], axis=1)[:, ::-1] - opens
    age = (ring.position - 1 - index // num_envs) % num_slots
    stored = age[:, None] + back[None, :] < ring.size  # [B, S]
    belongs = (openings_after == 0) & stored
    frames = unpack_bits(jax.tree.map(lambda leaf: take(leaf, path), ring.rows.obs))  # [B, S, O]
    mask = belongs.reshape(*belongs.shape, *(1,) * (frames.ndim - 2))
    return jnp.moveaxis(jnp.where(mask, frames, jnp.zeros_like(frames)), 1, -1)


def take(leaf: Array, index: Array) -> Array:
    """Gather from ``leaf`` [T, E, ...] at flat indices of any shape: [*index.shape, ...].

    The index must be in range, because ``promise_in_bounds`` disables the check.
    """
    flat = leaf.reshape(math.prod(leaf.shape[:2]), *leaf.shape[2:])
    return flat.at[index].get(mode="promise_in_bounds")


def _encode(rows: Row, *, num_leading: int) -> StoredRow:
    """Return the stored form of rows with ``num_leading`` leading axes."""
    flags = (
        rows.first.astype(jnp.uint8) * _FIRST
        + rows.terminated.astype(jnp.uint8) * _TERMINATED
        + rows.truncated.astype(jnp.uint8) * _TRUNCATED
    )
    return StoredRow(
        obs=pack_bits(rows.obs, num_leading),
        flags=flags,
        action=rows.action.astype(jnp.int32),
        reward=rows.reward.astype(jnp.float32),
        extras=rows.extras,
        legal=() if isinstance(rows.legal, tuple) else pack_bits(rows.legal, num_leading),
    )


def _decode(stored: StoredRow) -> Row:
    """Invert ``_encode``."""
    return Row(
        obs=unpack_bits(stored.obs),
        first=(stored.flags & _FIRST).astype(jnp.bool_),
        action=stored.action,
        reward=stored.reward,
        terminated=(stored.flags & _TERMINATED).astype(jnp.bool_),
        truncated=(stored.flags & _TRUNCATED).astype(jnp.bool_),
        extras=stored.extras,
        legal=unpack_bits(stored.legal),
    )
