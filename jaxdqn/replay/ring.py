"""The ring of rows: storage, writing, and what is gathered when sampling.

Storage is time-major, ``[T, E, ...]``, and read through one flat index
``slot * E + env``: the next row of the same environment is ``E`` further on,
modulo ``T * E``. Reading with one index on the reshaped ring, after writing,
is what lets the compiler update the ring in place.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.replay.packing import pack, unpack
from jaxdqn.types import Array, Batch, PyTree, Row

_FIRST, _TERMINATED, _TRUNCATED = 1, 2, 4


class StoredRow(NamedTuple):
    """A row as it is kept: flags in one byte, boolean observations in bits."""

    obs: PyTree
    flags: Array
    action: Array
    reward: Array
    extras: PyTree


class RingState(NamedTuple):
    """The rows of E environments and where the next ones go."""

    rows: StoredRow
    """leaves [T, E, ...]"""
    position: Array
    """[] int32, slot that the next row is written to"""
    size: Array
    """[] int32, rows stored for each environment, at most T"""


def init_ring(example_row: Row, num_envs: int, rows_per_env: int) -> RingState:
    """Return an empty ring for rows like ``example_row``, which has no leading axes."""
    example = _encode(jax.tree.map(jnp.asarray, example_row), num_leading=0)
    rows = jax.tree.map(
        lambda leaf: jnp.zeros((rows_per_env, num_envs, *leaf.shape), leaf.dtype), example
    )
    return RingState(rows=rows, position=jnp.int32(0), size=jnp.int32(0))


def write(ring: RingState, rows: Row) -> RingState:
    """Write rows ``[K, E, ...]``; T must be a multiple of K so that none wraps."""
    stored = _encode(rows, num_leading=2)
    length, num_slots = stored.flags.shape[0], ring.rows.flags.shape[0]

    def put(kept: Array, new: Array) -> Array:
        start = (ring.position,) + (0,) * (kept.ndim - 1)
        return jax.lax.dynamic_update_slice(kept, new, start)

    return RingState(
        rows=jax.tree.map(put, ring.rows, stored),
        position=(ring.position + length) % num_slots,
        size=jnp.minimum(ring.size + length, num_slots),
    )


def first_at(ring: RingState, slots: Array) -> Array:
    """Return whether each environment's row at ``slots`` [n] opens an episode: [n, E]."""
    return (ring.rows.flags[slots] & _FIRST).astype(jnp.bool_)


def gather_transitions(
    ring: RingState, index: Array, gamma: Array, *, n_step: int, frame_stack: int
) -> Batch:
    """Gather the n-step transitions that start at valid flat indices.

    With m the smallest j >= 1 such that the j-th step terminates or the row
    after the j-th opens an episode, at most N: the return sums m rewards, the
    bootstrap observation is m rows on, and its discount is gamma^m, or 0 if
    the m-th step terminates.

    Args:
      index: ``[B]`` int32
      gamma: ``[]`` float32
    """
    num_rows, num_envs = ring.rows.flags.size, ring.rows.flags.shape[1]
    ahead = jnp.arange(n_step + 1, dtype=jnp.int32) * num_envs
    path = (index[:, None] + ahead[None, :]) % num_rows  # [B, N + 1]
    flags = _take(ring.rows.flags, path)
    reward = _take(ring.rows.reward, path[:, :-1])
    terminated = (flags[:, :-1] & _TERMINATED).astype(jnp.bool_)  # [B, N]
    opens = (flags[:, 2:] & _FIRST).astype(jnp.bool_)  # [B, N - 1]
    goes_on = ~(terminated[:, :-1] | opens)
    alive = jnp.concatenate([jnp.ones_like(terminated[:, :1]), goes_on], axis=1)
    alive = jnp.cumprod(alive.astype(jnp.float32), axis=1)
    powers = gamma ** jnp.arange(n_step, dtype=jnp.float32)
    ends = jnp.any(terminated & (alive > 0), axis=1)
    last = jnp.sum(alive, axis=1).astype(jnp.int32) - 1  # m - 1
    bootstrap = (index + (last + 1) * num_envs) % num_rows
    return Batch(
        obs_tm1=gather_obs(ring, index, frame_stack=frame_stack),
        a_tm1=_take(ring.rows.action, index),
        # Void rewards past the end may be anything, so they are replaced, not multiplied by 0.
        r_t=jnp.sum(jnp.where(alive > 0, powers[None, :] * reward, 0.0), axis=1),
        discount_t=jnp.where(ends, 0.0, gamma * powers[last]),
        obs_t=gather_obs(ring, bootstrap, frame_stack=frame_stack),
        extras_tm1=jax.tree.map(lambda leaf: _take(leaf, index), ring.rows.extras),
    )


def gather_sequences(ring: RingState, index: Array, *, length: int) -> Row:
    """Gather the rows ``[B, L]`` that follow each flat index, itself included."""
    num_rows, num_envs = ring.rows.flags.size, ring.rows.flags.shape[1]
    ahead = jnp.arange(length, dtype=jnp.int32) * num_envs
    path = (index[:, None] + ahead[None, :]) % num_rows
    return _decode(jax.tree.map(lambda leaf: _take(leaf, path), ring.rows))


def in_order(ring: RingState) -> Row:
    """Return the stored rows, oldest first: leaves [size, E, ...]. Not to be jitted."""
    num_slots, size = ring.rows.flags.shape[0], int(ring.size)
    slots = (int(ring.position) - size + jnp.arange(size, dtype=jnp.int32)) % num_slots
    return _decode(jax.tree.map(lambda leaf: leaf[slots], ring.rows))


def gather_obs(ring: RingState, index: Array, *, frame_stack: int) -> Array:
    """Gather observations [B, O], or stacks of S frames [B, O, S], the newest last.

    Frames from before the episode's first row, or from before the stream's
    first row, are zero.
    """
    if frame_stack == 1:
        return unpack(jax.tree.map(lambda leaf: _take(leaf, index), ring.rows.obs))
    num_slots, num_envs = ring.rows.flags.shape
    back = jnp.arange(frame_stack - 1, -1, -1, dtype=jnp.int32)  # S - 1, ..., 0
    path = (index[:, None] - back[None, :] * num_envs) % (num_slots * num_envs)
    opens = (_take(ring.rows.flags, path) & _FIRST).astype(jnp.int32)  # [B, S]
    # A frame belongs if no row after it, up to the newest, opens an episode.
    openings_after = jnp.cumsum(opens[:, ::-1], axis=1)[:, ::-1] - opens
    age = (ring.position - 1 - index // num_envs) % num_slots
    stored = age[:, None] + back[None, :] < ring.size
    belongs = (openings_after == 0) & stored
    frames = unpack(jax.tree.map(lambda leaf: _take(leaf, path), ring.rows.obs))  # [B, S, O]
    mask = belongs.reshape(*belongs.shape, *(1,) * (frames.ndim - 2))
    return jnp.moveaxis(jnp.where(mask, frames, jnp.zeros_like(frames)), 1, -1)


def _take(leaf: Array, index: Array) -> Array:
    """Read ``leaf`` [T, E, ...] at flat indices of any shape."""
    flat = leaf.reshape(math.prod(leaf.shape[:2]), *leaf.shape[2:])
    return flat.at[index].get(mode="promise_in_bounds")


def _encode(rows: Row, *, num_leading: int) -> StoredRow:
    flags = (
        rows.first.astype(jnp.uint8) * _FIRST
        + rows.terminated.astype(jnp.uint8) * _TERMINATED
        + rows.truncated.astype(jnp.uint8) * _TRUNCATED
    )
    return StoredRow(
        obs=pack(rows.obs, num_leading),
        flags=flags,
        action=rows.action.astype(jnp.int32),
        reward=rows.reward.astype(jnp.float32),
        extras=rows.extras,
    )


def _decode(stored: StoredRow) -> Row:
    return Row(
        obs=unpack(stored.obs),
        first=(stored.flags & _FIRST).astype(jnp.bool_),
        action=stored.action,
        reward=stored.reward,
        terminated=(stored.flags & _TERMINATED).astype(jnp.bool_),
        truncated=(stored.flags & _TRUNCATED).astype(jnp.bool_),
        extras=stored.extras,
    )
