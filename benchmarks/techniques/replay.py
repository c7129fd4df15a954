"""Measurements of the storage of observations in a replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.replay.cases import ROWS, E, RowKind, make_replays, observations
from benchmarks.techniques.registry import Result, speed_ups
from benchmarks.timing import Case, Effort, compile_timed
from benchmarks.workloads import carried

_BATCH = 128


def measure_deduplication(effort: Effort) -> list[Result]:
    """Measure a ring that stores each observation once, relative to a ring of pairs."""
    kind, capacity = ROWS["uint8 (84,84)"], 1_000 if effort.quick else 50_000
    replays = make_replays(kind, capacity, _BATCH, prioritized=False)
    pairs = _pairs(kind, capacity)
    cases = {
        "pairs of observations": _case(*pairs, effort),
        "each observation once": _case(replays.state, replays.add, replays.sample, effort),
    }
    notes = {
        "each observation once": f"{_row_bytes(replays.state, capacity)} bytes a row, pairs "
        f"{_row_bytes(pairs[0], capacity)}"
    }
    return speed_ups(cases, effort, of="adds and draws", notes=notes)


def measure_bit_packing(effort: Effort) -> list[Result]:
    """Measure packed boolean observations relative to the same observations as bytes."""
    shape, capacity = (10, 10, 4), 10_000 if effort.quick else 1_000_000
    cases, size = {}, {}
    for name, dtype in (("bytes", "uint8"), ("bits", "bool")):
        replays = make_replays(RowKind(shape, dtype, capacity), capacity, _BATCH, prioritized=False)
        cases[name] = _case(replays.state, replays.add, replays.sample, effort)
        size[name] = _row_bytes(replays.state, capacity)
    notes = {"bits": f"{size['bits']} bytes a row, unpacked {size['bytes']}"}
    return speed_ups(cases, effort, of="adds and draws", notes=notes)


def _row_bytes(state: Any, capacity: int) -> int:
    """Return the bytes per row of a replay."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) // capacity


def _pairs(kind: RowKind, capacity: int) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """Return a plain ring of pairs: its state, ``add(state, number)`` and ``sample(key, state)``.

    It tracks no valid starts, because every row is complete.
    """
    rows = capacity // E
    obs = jnp.zeros((rows, E, *kind.shape), kind.dtype)
    numbers = jnp.zeros((rows, E), jnp.float32)

    def add(state: Any, number: Any) -> Any:
        obs, after, action, reward, position = state
        slot = position % rows
        return (
            obs.at[slot].set(observations(kind, number, kind.dtype)),
            after.at[slot].set(observations(kind, number + 1, kind.dtype)),
            action.at[slot].set(number % 3),
            reward.at[slot].set(number.astype(jnp.float32)),
            position + 1,
        )

    def sample(key: Any, state: Any) -> tuple[Any, Any]:
        flat = [leaf.reshape(capacity, *leaf.shape[2:]) for leaf in state[:4]]
        index = jax.random.randint(key, (_BATCH,), 0, capacity)
        return [leaf[index] for leaf in flat], index

    state = (obs, jnp.copy(obs), jnp.zeros((rows, E), jnp.int32), numbers, jnp.int32(0))
    return state, add, sample


def _case(state: Any, add: Callable[..., Any], sample: Callable[..., Any], effort: Effort) -> Case:
    """Return repeated additions and draws; the result depends on each draw."""

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        key, number, state = carry
        key, key_sample = jax.random.split(key)
        state = add(state, number)
        batch, _ = sample(key_sample, state)
        read = [jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(batch)]
        return (key, number + 1, state), sum(read, jnp.float32(0.0))

    def run(carry: Any) -> tuple[Any, Any]:
        return jax.lax.scan(step, carry, None, length=effort.iterations)

    carry = (jax.random.key(0), jnp.int32(0), jax.tree.map(jnp.copy, state))
    compiled, _ = compile_timed(run, carry, donate=(0,))
    return Case(carried(compiled, carry), effort.iterations)
