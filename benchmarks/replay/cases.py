"""Cases of ``benchmarks.replay``: the replays of this library and those of flashbax."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.timing import Case

E = 10
"""Environments; each adds one row at a time."""
EPISODE = 50
"""Rows per episode."""


class RowKind(NamedTuple):
    """Observation of a row."""

    shape: tuple[int, ...]
    dtype: str
    max_capacity: int
    """Maximum capacity that is measured; larger replays need too much memory."""


ROWS = {
    "float32 (4,)": RowKind((4,), "float32", 10**7),
    "bool (10,10,4)": RowKind((10, 10, 4), "bool", 10**6),
    "uint8 (84,84)": RowKind((84, 84), "uint8", 10**5),
}
PARTS = ("add", "draw", "update", "together")
"""``update`` writes priorities, only if prioritised; ``together`` does all of them in one loop."""


class Replays(NamedTuple):
    """Replay with the interface of this benchmark."""

    state: Any
    """State of a full replay."""
    add: Callable[[Any, Any], Any]
    """``add(state, number) -> state``: add E rows that depend on a number [] int32."""
    sample: Callable[[Any, Any], tuple[Any, Any]]
    """``sample(key, state) -> (batch, indices)``"""
    update: Callable[[Any, Any, Any], Any] | None
    """``update(state, indices, priorities) -> state``; None for a uniform replay."""


def flashbax_is_installed() -> bool:
    """Return whether flashbax can be measured."""
    return importlib.util.find_spec("flashbax") is not None


def observations(kind: RowKind, number: Any, dtype: str) -> Any:
    """Return observations [E, ...] that depend on the number of the vector step."""
    import jax.numpy as jnp

    size = 1
    for axis in kind.shape:
        size *= axis
    spread = jnp.arange(size, dtype=jnp.int32).reshape(1, *kind.shape)
    env = jnp.arange(E, dtype=jnp.int32).reshape(E, *(1,) * len(kind.shape))
    pattern = (spread * 7 + env + number) % 11
    return (pattern < 2) if kind.dtype == "bool" and dtype == "bool" else pattern.astype(dtype)


def make_replays(kind: RowKind, capacity: int, batch: int, *, prioritized: bool) -> Replays:
    """Make a full replay of this library."""
    import jax
    import jax.numpy as jnp

    from jaxdqn.replay import make_prioritized, make_uniform
    from jaxdqn.types import Row

    make = make_prioritized if prioritized else make_uniform
    replay = make(num_envs=E, rows_per_env=capacity // E, rows_per_add=1, batch_size=batch)

    def rows(number: Any) -> Row:
        phase = (number + 5 * jnp.arange(E, dtype=jnp.int32)) % EPISODE
        return Row(
            obs=observations(kind, number, kind.dtype)[None],
            first=(phase == 0)[None],
            action=(phase % 3)[None],
            reward=phase.astype(jnp.float32)[None],
            terminated=(phase == EPISODE - 2)[None],
            truncated=jnp.zeros((1, E), jnp.bool_),
        )

    def sample(key: Any, state: Any) -> tuple[Any, Any]:
        batch, info = replay.sample(key, state, jnp.float32(0.99))
        return (batch, info.probabilities), info.indices

    example = jax.tree.map(lambda leaf: leaf[0, 0], rows(jnp.int32(0)))
    state = _filled(replay.init(example), lambda s, n: replay.add(s, rows(n)), capacity)
    return Replays(
        state=state,
        add=lambda state, number: replay.add(state, rows(number)),
        sample=sample,
        update=replay.update if prioritized else None,
    )


def make_flashbax_replays(
    kind: RowKind, capacity: int, batch: int, *, prioritized: bool
) -> Replays:
    """Make a full flat buffer of flashbax, which has no bit packing: booleans become uint8."""
    import flashbax
    import jax
    import jax.numpy as jnp

    make = flashbax.make_prioritised_flat_buffer if prioritized else flashbax.make_flat_buffer
    buffer = make(max_length=capacity, min_length=batch, sample_batch_size=batch, add_batch_size=E)
    dtype = "uint8" if kind.dtype == "bool" else kind.dtype

    def rows(number: Any) -> dict[str, Any]:
        phase = (number + 5 * jnp.arange(E, dtype=jnp.int32)) % EPISODE
        return {
            "obs": observations(kind, number, dtype),
            "action": phase % 3,
            "reward": phase.astype(jnp.float32),
            "done": phase == EPISODE - 2,
        }

    def sample(key: Any, state: Any) -> tuple[Any, Any]:
        drawn = buffer.sample(state, key)
        first, second = drawn.experience.first, drawn.experience.second
        pair = (first, second["obs"])
        if not prioritized:
            return pair, jnp.zeros(batch, jnp.int32)
        return (pair, drawn.probabilities), drawn.indices

    example = jax.tree.map(lambda leaf: leaf[0], rows(jnp.int32(0)))
    state = _filled(buffer.init(example), lambda s, n: buffer.add(s, rows(n)), capacity)
    return Replays(
        state=state,
        add=lambda state, number: buffer.add(state, rows(number)),
        sample=sample,
        update=buffer.set_priorities if prioritized else None,
    )


def prepare(replays: Replays, part: str, batch: int, repetitions: int) -> Case:
    """Compile repetitions of a part in a scan with its state donated."""
    import jax
    import jax.numpy as jnp

    from benchmarks.timing import compile_timed
    from benchmarks.workloads import carried

    def once(carry: Any, key: Any) -> tuple[Any, None]:
        state, number, indices, checksum = carry
        if part in ("add", "together"):
            state = replays.add(state, number)
        if part in ("draw", "together"):
            drawn, indices = replays.sample(key, state)
            checksum = checksum + _checksum(drawn)
        if replays.update is not None and part in ("update", "together"):
            noise = (jnp.arange(batch, dtype=jnp.int32) * 37 + number) % 97
            # The priorities depend on the drawn rows, so XLA cannot remove the draw.
            priorities = 0.1 + noise.astype(jnp.float32) + jnp.minimum(jnp.abs(checksum), 1e-9)
            state = replays.update(state, indices, priorities)
        return (state, number + 1, indices, checksum), None

    def run(carry: Any) -> tuple[Any, Any]:
        # Keys must differ between calls, or each call would draw the same rows.
        keys = jax.random.split(jax.random.key(carry[1]), repetitions)
        return jax.lax.scan(once, carry, keys)

    _, indices = jax.jit(replays.sample)(jax.random.key(0), replays.state)
    state = jax.tree.map(jnp.copy, replays.state)
    carry = (state, jnp.int32(1_000), indices, jnp.float32(0))
    compiled, _ = compile_timed(run, carry, donate=(0,))
    return Case(carried(compiled, carry), repetitions)


def _checksum(tree: Any) -> Any:
    """Return a number that depends on every element of a tree."""
    import jax
    import jax.numpy as jnp

    return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree))


def _filled(state: Any, add: Callable[[Any, Any], Any], capacity: int) -> Any:
    """Add rows until the replay is full."""
    import jax
    import jax.numpy as jnp

    def fill(state: Any) -> Any:
        numbers = jnp.arange(capacity // E + 3, dtype=jnp.int32)
        return jax.lax.scan(lambda state, n: (add(state, n), None), state, numbers)[0]

    return jax.block_until_ready(jax.jit(fill, donate_argnums=0)(state))


def bytes_per_transition() -> list[dict[str, Any]]:
    """Return the bytes per transition of this replay, and of a buffer of unpacked pairs."""
    import jax.numpy as jnp
    import numpy as np

    from jaxdqn.replay import make_prioritized, make_uniform, replay_bytes
    from jaxdqn.types import Row

    rows, slots = [], 10_000
    kinds = (
        ("CartPole, float32 (4,)", (4,), "float32", 1),
        ("MinAtar, bool (10,10,4)", (10, 10, 4), "bool", 1),
        ("Atari, uint8 (84,84), stack 4", (84, 84), "uint8", 4),
    )
    for name, shape, dtype, stack in kinds:
        no, obs = jnp.bool_(False), jnp.zeros(shape, jnp.dtype(dtype))
        example = Row(obs, no, jnp.int32(0), jnp.float32(0), no, no)
        sizes: dict[str, Any] = dict(
            num_envs=E, rows_per_env=slots, rows_per_add=1, batch_size=32, frame_stack=stack
        )
        # Two observations, and four bytes each for action, reward and discount.
        pair = 2 * int(np.prod(shape)) * stack * np.dtype(dtype).itemsize + 12
        uniform = replay_bytes(make_uniform(**sizes), example) / (slots * E)
        prioritized = replay_bytes(make_prioritized(**sizes), example) / (slots * E)
        rows.append(
            {
                "rows": name,
                "uniform": uniform,
                "prioritised": prioritized,
                "pairs, unpacked": float(pair),
                "of them": prioritized / pair,
            }
        )
    return rows
