"""Shard of the replay, with a prioritised ring for each of its actors.

Asynchronous streams cannot share the position of a ring, so each stream has its own ring. A batch
is drawn from the rings in proportion to the sums of their priorities, stratified over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.actor_learner.initial_priorities import (
    InitialPriorities,
    behaviour_prob_of,
    make_initial_priorities,
)
from jaxdqn.config.config import Config
from jaxdqn.replay.paths import make_gather
from jaxdqn.replay.prioritized import (
    PrioritizedState,
    count_generations,
    generation_of,
    make_prioritized,
)
from jaxdqn.replay.sum_tree import draw, total
from jaxdqn.types import Array, Batch, PyTree, Replay, Row, SampleInfo

Rings = tuple[PrioritizedState, ...]


class Draws(NamedTuple):
    """m batches drawn from a shard."""

    batches: PyTree
    """``Batch`` with leaves [m, B, ...]; empty when priorities are returned"""
    info: SampleInfo
    """leaves [m, B]; the index of a row is its index in its ring"""
    rings: Array
    """[m, B] int32, the ring of each row"""
    ages: PyTree
    """[m] float32, or empty: mean number of vector steps stored in the ring since each row"""
    mass: Array
    """[] float32, sum of the priorities of the shard"""


class ShardFunctions(NamedTuple):
    """Pure functions of one shard with R rings."""

    init: Callable[[Row], Rings]
    """``init(example_row) -> rings``"""
    add: Callable[[PrioritizedState, Row], PrioritizedState]
    """``add(ring, rows[I, K, E]) -> ring``"""
    sample: Callable[[Array, Rings, Array], Draws]
    """``sample(keys[m], rings, gamma) -> draws``; consumes the keys. At least one priority must be
    positive."""
    update: Callable[[Rings, Draws, Array], Rings]
    """``update(rings, draws, priorities[m, B]) -> rings``, in the order of the batches. Rows that
    were overwritten since the draw are ignored."""
    mass: Callable[[Rings], Array]
    """``mass(rings) -> [] float32``, the sum of the priorities"""


def make_shard(
    config: Config, *, num_envs: int, rings: int, initial: InitialPriorities = "max"
) -> ShardFunctions:
    """Make the functions of a shard.

    Args:
      config: configuration of the run.
      num_envs: E, number of environments of one actor.
      rings: R, number of actors that send their rows to this shard.
      initial: initial priorities; with ``actor`` the extras of rows are ``Estimates``.
    """
    batch_size = config.batch_size * config.accumulate
    replay = make_prioritized(
        num_envs=num_envs,
        rows_per_env=config.replay_rows,
        rows_per_add=config.rollout_length,
        batch_size=batch_size,
        n_step=config.n_step,
        frame_stack=config.frame_stack,
    )
    return ShardFunctions(
        init=lambda example: tuple(replay.init(example) for _ in range(rings)),
        add=_make_add(config, replay, num_envs, initial),
        sample=_make_sample(config, num_envs, batch_size),
        update=_make_update(replay),
        mass=_mass,
    )


def _mass(rings: Rings) -> Array:
    """Return the sum of the priorities, [] float32."""
    return jnp.sum(jnp.stack([total(ring.tree) for ring in rings]))


def _make_add(
    config: Config, replay: Replay, num_envs: int, initial: InitialPriorities
) -> Callable[[PrioritizedState, Row], PrioritizedState]:
    """Make ``ShardFunctions.add``."""
    set_initial = make_initial_priorities(config, replay, num_envs)

    def add(ring: PrioritizedState, rows: Row) -> PrioritizedState:
        ring = jax.lax.scan(lambda ring, rows: (replay.add(ring, rows), None), ring, rows)[0]
        if initial == "max":
            return ring
        return set_initial(ring, rows.first.shape[0] * rows.first.shape[1])

    return add


def _make_update(replay: Replay) -> Callable[[Rings, Draws, Array], Rings]:
    """Make ``ShardFunctions.update``."""

    def of_batch(state: Rings, inputs: Any) -> tuple[Rings, None]:
        indices, ring, priorities = inputs
        # No row has a negative index: the update ignores it.
        return tuple(
            replay.update(one, jnp.where(ring == r, indices, -1), priorities)
            for r, one in enumerate(state)
        ), None

    def update(state: Rings, draws: Draws, priorities: Array) -> Rings:
        return jax.lax.scan(of_batch, state, (draws.info.indices, draws.rings, priorities))[0]

    return update


def _make_sample(
    config: Config, num_envs: int, batch_size: int
) -> Callable[[Array, Rings, Array], Draws]:
    """Make ``ShardFunctions.sample``."""
    draw_from_ring = _make_draw_from_ring(config, num_envs)

    def one_batch(state: Rings, gamma: Array, key: Array) -> Any:
        masses = jnp.stack([total(ring.tree) for ring in state])
        ends = jnp.cumsum(masses)
        mass = ends[-1]
        part = mass / batch_size
        bits = jax.random.bits(key, (batch_size,), jnp.uint32)
        strata = jnp.arange(batch_size, dtype=jnp.float32) * part
        offsets = (bits >> 8).astype(jnp.float32) * (math.ldexp(1.0, -24) * part)
        ring = _ring_of(masses, ends, strata + offsets)
        # A stratum may begin in the ring before the ring of its position; the coarse part is then
        # negative. Positions in other rings are replaced by 0, and their results are not used.
        results = [
            draw_from_ring(one, jnp.where(ring == r, strata - before, 0.0), offsets, gamma)
            for r, (one, before) in enumerate(zip(state, ends - masses, strict=True))
        ]
        batch, index, leaf, age = _select(ring, results)
        return batch, SampleInfo(index, leaf / mass), ring, jnp.mean(age)

    def sample(keys: Array, state: Rings, gamma: Array) -> Draws:
        batches, info, ring, ages = jax.lax.map(lambda key: one_batch(state, gamma, key), keys)
        return Draws(batches, info, ring, ages, _mass(state))

    return sample


def _make_draw_from_ring(
    config: Config, num_envs: int
) -> Callable[[PrioritizedState, Array, Array, Array], tuple[Batch, Array, Array, Array]]:
    """Make a function of a ring and positions [B] in it.

    It returns the transitions [B, ...], their indices, priorities and ages [B].
    """
    num_rows = num_envs * config.replay_rows
    generations = count_generations(num_rows)
    gather = make_gather(
        n_step=config.n_step,
        frame_stack=config.frame_stack,
        paths=config.importance_ratios,
        behaviour_prob=behaviour_prob_of,
    )

    def draw_from_ring(
        ring: PrioritizedState, strata: Array, offsets: Array, gamma: Array
    ) -> tuple[Batch, Array, Array, Array]:
        flat, leaf = draw(ring.tree, strata, offsets)
        batch = gather(ring.ring, flat, gamma)._replace(extras_tm1=())
        index = flat + num_rows * generation_of(ring, flat, generations)
        age = (ring.position - 1 - flat // num_envs) % config.replay_rows
        return batch, index, leaf, age.astype(jnp.float32)

    return draw_from_ring


def _ring_of(masses: Array, ends: Array, positions: Array) -> Array:
    """Return the ring [B] int32 at each position of the cumulative sum over rings.

    A ring without mass is returned only if no ring has mass.
    """
    ring = jnp.sum(positions[:, None] >= ends[None, :], axis=1, dtype=jnp.int32)
    indices = jnp.arange(masses.size, dtype=jnp.int32)
    last = jnp.max(jnp.where(masses > 0, indices, 0))
    # Rounding may put a position past the end. A ring without mass ends where the previous ring
    # ends, so counting the ends skips it.
    return jnp.minimum(ring, last)


def _select(ring: Array, results: list[Any]) -> Any:
    """Select each example [B, ...] from the results of its ring; ``results`` has every ring."""

    def choose(*leaves: Array) -> Array:
        chosen = leaves[0]
        for r, leaf in enumerate(leaves[1:], start=1):
            here = (ring == r).reshape(-1, *(1,) * (leaf.ndim - 1))
            chosen = jnp.where(here, leaf, chosen)
        return chosen

    return jax.tree.map(choose, *results)
