"""The ring after many wraps: nothing in its state counts from the start of the run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.replay import make_sequence, make_uniform
from tests.oracles import (
    HistoryOracle,
    Piece,
    SequenceOracle,
    TransitionOracle,
    assert_trees_match,
    live_starts,
    rows_from_streams,
    stack_trees,
    stream_of,
)

NUM_ENVS, CAPACITY, PER_ADD = 2, 12, 2
SHARED = {
    "num_envs": NUM_ENVS,
    "rows_per_env": CAPACITY,
    "rows_per_add": PER_ADD,
    "batch_size": 4,
}


def one_period() -> list[Any]:
    """Return T rows with terminations, a time limit and a broken stream; they may be repeated."""
    pieces = [
        [Piece(3, "terminated"), Piece(1, "broken"), Piece(2, "life_loss"), Piece(4, "truncated")],
        [Piece(1, "truncated"), Piece(4, "broken"), Piece(5, "both")],
    ]
    streams = [stream_of(of_env, length=CAPACITY, env=env) for env, of_env in enumerate(pieces)]
    return rows_from_streams(streams, obs_shape=(11,), obs_dtype=np.bool_, with_extras=False)


@pytest.mark.parametrize("kind", ["uniform", "sequence"])
def test_the_state_after_a_million_rows_equals_that_after_a_few(kind: str) -> None:
    """Feed the same T rows repeatedly.

    The tail advances by the same number of starts in each round. After as many rounds as the
    FIFO queue has entries, the state must thus be the same in every leaf. Anything that counts
    from the start of the run would differ.
    """
    oracle: HistoryOracle
    geometry = {"num_envs": NUM_ENVS, "rows_per_env": CAPACITY}
    if kind == "uniform":
        replay = make_uniform(**SHARED, n_step=3, frame_stack=2)
        oracle = TransitionOracle(**geometry, n_step=3, frame_stack=2)
    else:
        replay = make_sequence(**SHARED, length=4)
        oracle = SequenceOracle(**geometry, length=4)
    rows = one_period()
    chunks = stack_trees([stack_trees(rows[t : t + PER_ADD]) for t in range(0, CAPACITY, PER_ADD)])

    @jax.jit
    def feed(state: Any, rounds: Any) -> Any:
        def once_round(_: Any, state: Any) -> Any:
            return jax.lax.scan(lambda s, chunk: (replay.add(s, chunk), None), state, chunks)[0]

        return jax.lax.fori_loop(0, rounds, once_round, state)

    early = feed(replay.init(jax.tree.map(lambda leaf: leaf[0], rows[0])), jnp.int32(5))
    rounds = 8000 * (early.starts.shape[0] if kind == "uniform" else CAPACITY)
    assert rounds * CAPACITY > 1_000_000
    late = feed(early, jnp.int32(rounds))
    assert_trees_match(late, jax.tree.map(np.asarray, early))
    assert int(late.size) == CAPACITY
    assert int(late.position) == 0
    oracle.add(rows * 5)
    if kind == "uniform":
        assert sorted(live_starts(late)) == sorted(oracle.valid_starts())


def test_a_scan_of_adds_equals_a_loop() -> None:
    replay = make_uniform(**SHARED, n_step=3, frame_stack=2)
    rows = one_period() * 2
    chunks = [stack_trees(rows[t : t + PER_ADD]) for t in range(0, len(rows), PER_ADD)]
    empty = replay.init(jax.tree.map(lambda leaf: leaf[0], rows[0]))
    add = jax.jit(replay.add)
    looped = empty
    for chunk in chunks:
        looped = add(looped, chunk)
    scanned, _ = jax.jit(
        lambda state, xs: jax.lax.scan(lambda s, chunk: (replay.add(s, chunk), None), state, xs)
    )(empty, stack_trees(chunks))
    assert_trees_match(scanned, jax.tree.map(np.asarray, looped))
