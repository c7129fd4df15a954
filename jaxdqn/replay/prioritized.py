"""Prioritised replay (Schaul et al. 2016): valid starts are drawn proportionally to priority.

A sum tree has one leaf for each row of the ring, at the row's flat index.

Invariant: the leaf of a valid start is its priority, which is positive. All other leaves are zero,
so nothing else is ever drawn.

*Generation tags.* Priorities arrive after the batch was drawn, possibly after its rows were
overwritten. An index returned by ``sample`` therefore encodes the flat index and the generation of
the row, which is the number of times that the ring had wrapped when the row was written. ``update``
ignores an index whose generation is no longer the current one at that flat index.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.replay.paths import make_gather
from jaxdqn.replay.ring import RingState, StoredRow, first_at, init_ring, write
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

_MIN_PRIORITY = 1e-30
"""Lower bound of a priority. A zero would remove the row forever, because ``update`` skips zero
leaves."""
_NUM_INDICES = 2**31
"""Number of non-negative int32 values."""


class PrioritizedState(NamedTuple):
    """Ring of rows, and the priorities of its valid starts."""

    storage: StoredRow
    position: Array
    size: Array
    tree: SumTree
    """One leaf for each flat index."""
    max_priority: Array
    """[] float32, maximum priority so far, at least 1; the initial priority of new starts"""
    generation: Array
    """[] int32, number of times that the ring has wrapped, modulo ``count_generations``"""

    @property
    def ring(self) -> RingState:
        """The ring of rows."""
        return RingState(self.storage, self.position, self.size)


def make_prioritized(
    *,
    num_envs: int,
    rows_per_env: int,
    rows_per_add: int,
    batch_size: int,
    n_step: int = 1,
    frame_stack: int = 1,
    paths: bool = False,
    fan_out: int = FAN_OUT,
) -> Replay:
    """Make a prioritised replay of n-step transitions, with the valid starts of ``make_uniform``.

    ``sample`` is stratified: the b-th row of a batch is drawn from the b-th of B equal parts of the
    sum of the priorities (appendix B.2.1 of the paper). ``update`` takes the indices of
    ``SampleInfo`` and stores the priorities, raised to at least 1e-30; the caller must apply the
    exponent. It ignores rows that were overwritten or became context for frame stacks since the
    draw. Generation tags distinguish a row from its successors in the same slot over the last 2^31
    rows.

    Args:
      num_envs: E
      rows_per_env: T, above N + S + K and a multiple of K
      rows_per_add: K, rows per environment in one ``add``
      batch_size: B
      n_step: N
      frame_stack: S
      paths: True for batches with ``Batch.path``; the extras of a row are then the probability of
        its action.
      fan_out: number of children of a node of the sum tree

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
    num_rows = num_envs * rows_per_env
    generations = count_generations(num_rows)
    gather = make_gather(n_step=n_step, frame_stack=frame_stack, paths=paths)

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
        flat, probabilities = draw_proportional(key, state.tree, batch_size)
        batch = gather(state.ring, flat, gamma)
        indices = flat + num_rows * generation_of(state, flat, generations)
        return batch, SampleInfo(indices=indices, probabilities=probabilities)

    return Replay(
        init=init,
        add=_make_add(n_step, frame_stack - 1, generations),
        sample=sample,
        update=make_priority_update(num_rows, generations),
    )


def count_generations(num_leaves: int) -> int:
    """Return the number of generations that an int32 index can encode for ``num_leaves`` leaves."""
    return _NUM_INDICES // num_leaves


def importance_weights(
    probabilities: Array, exponent: Array, device_max: Callable[[Array], Array]
) -> Array:
    """Return importance weights ``(n P(i))^-exponent``, divided by their maximum.

    Schaul et al. 2016, section 3.4; shape [B]. With D devices, a row of device d is drawn with
    probability ``P_d(i) / D``. The weights are thus proportional to ``P_d(i)^-exponent`` on every
    device, and both D and the number of rows n cancel. Only the maximum must be taken over all
    devices.

    Args:
      probabilities: ``[B]`` float32, probability of each draw under the replay of its device.
      exponent: ``[]`` float32, beta: 0 for no correction, 1 for full correction.
      device_max: maximum over devices; the identity on one device.
    """
    lowest = -device_max(-jnp.min(probabilities))
    return (lowest / probabilities) ** exponent


def _make_add(
    delay: int, context: int, generations: int
) -> Callable[[PrioritizedState, Row], PrioritizedState]:
    """Make ``add``.

    Args:
      delay: number of newer rows required before a row becomes sampleable.
      context: number of oldest rows that stop being valid starts once the ring overwrites rows.
      generations: number of generations that an index can encode.
    """

    def add(state: PrioritizedState, rows: Row) -> PrioritizedState:
        length, before = rows.first.shape[0], state
        ring = write(state.ring, rows)
        num_slots, num_envs = ring.rows.flags.shape
        leaving = (length + context) * num_envs
        full = before.size == num_slots
        # Zero the leaves of the overwritten rows and of the context rows after them. Until the ring
        # is full, the slots after the written ones are empty or hold the first rows of the stream.
        # The stacks of those rows need no earlier rows, so the context then keeps its leaves.
        zeroed = (
            before.position * num_envs,
            jnp.zeros(leaving, jnp.float32),
            full | (jnp.arange(leaving, dtype=jnp.int32) < length * num_envs),
        )
        start, entering = entering_rows(ring, length, delay)
        entered = (
            start * num_envs,
            jnp.full(entering.size, state.max_priority),
            entering.ravel(),
        )
        wrapped = (ring.position == 0).astype(jnp.int32)
        return state._replace(
            storage=ring.rows,
            position=ring.position,
            size=ring.size,
            tree=set_runs(state.tree, (zeroed, entered), num_slots * num_envs),
            generation=(state.generation + wrapped) % generations,
        )

    return add


def make_priority_update(
    num_leaves: int, generations: int, stride: int = 1
) -> Callable[[Any, Array, Array], Any]:
    """Make ``update(state, indices[B], priorities[B]) -> state``.

    The state is a ``PrioritizedState`` or another state with the same fields.

    Args:
      num_leaves: number of leaves of the tree, one for each row in every ``stride``-th slot.
      generations: number of generations that an index can encode.
      stride: slots from one leaf of an environment to the next.
    """

    def update(state: Any, indices: Array, priorities: Array) -> Any:
        flat, generation = indices % num_leaves, indices // num_leaves
        same = generation == generation_of(state, flat, generations, stride)
        # A row of the right generation may have become context for frame stacks and is then no
        # longer a valid start. Its leaf is zero and must remain zero.
        live = same & (leaves_at(state.tree, flat) > 0)
        priorities = jnp.maximum(priorities.astype(jnp.float32), _MIN_PRIORITY)
        past = state.tree.levels[0].size
        return state._replace(
            tree=set_leaves(state.tree, jnp.where(live, flat, past), priorities),
            max_priority=jnp.maximum(
                state.max_priority, jnp.max(jnp.where(live, priorities, _MIN_PRIORITY))
            ),
        )

    return update


def entering_rows(ring: RingState, length: int, delay: int) -> tuple[Array, Array]:
    """Return the first slot and the valid starts of the rows that the newest write made sampleable.

    Returns:
      slot: ``[]`` int32
      valid: ``[length, E]`` bool, for ``length`` consecutive slots, modulo T.
    """
    num_slots, num_envs = ring.rows.flags.shape
    age = delay + length - 1 - jnp.arange(length, dtype=jnp.int32)  # [K], oldest first
    slots = (ring.position - 1 - age) % num_slots
    stored = jnp.broadcast_to((age < ring.size)[:, None], (length, num_envs))
    return slots[0], stored & ~first_at(ring, (slots + 1) % num_slots)


def draw_proportional(key: Array, tree: SumTree, batch_size: int) -> tuple[Array, Array]:
    """Draw one leaf from each of B equal parts of the sum of priorities.

    Returns:
      Flat indices ``[B]`` int32, and the probability of each draw ``[B]`` float32.
    """
    mass = total(tree)
    bits = jax.random.bits(key, (batch_size,), jnp.uint32)
    part = mass / batch_size
    strata = jnp.arange(batch_size, dtype=jnp.float32) * part
    # Use 24 of the 32 bits: float32 represents them exactly, so the fraction stays below 1.
    offsets = (bits >> 8).astype(jnp.float32) * (math.ldexp(1.0, -24) * part)
    index, leaf = draw(tree, strata, offsets)
    return index, leaf / mass


def generation_of(state: Any, flat: Array, generations: int, stride: int = 1) -> Array:
    """Return the generations [n] of the rows at leaves ``flat`` [n]."""
    num_envs = state.storage.flags.shape[1]
    # Slots at or after ``position`` have not been overwritten since the ring last wrapped.
    older = (flat // num_envs * stride >= state.position).astype(jnp.int32)
    return (state.generation - older) % generations
