"""The sequence replay against its slow twin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdqn.replay import make_sequence
from tests.oracles import (
    SequenceOracle,
    assert_trees_match,
    random_pieces,
    rows_from_streams,
    stack_trees,
    stream_of,
)
from tests.replay_cases import SEQUENCE_CASES, SequenceCase, sequence_rows
from tests.toys import quick_jit


@pytest.mark.parametrize("case", SEQUENCE_CASES.values(), ids=SEQUENCE_CASES.keys())
def test_starts_and_sequences_equal_the_twin_over_random_streams(case: SequenceCase) -> None:
    replay = make_sequence(**case.sizes(), batch_size=512)
    add, sample = quick_jit(replay.add), quick_jit(replay.sample)
    rows = sequence_rows(case, np.random.default_rng(5), wraps=4)
    oracle = SequenceOracle(**case.geometry())
    state = replay.init(jax.tree.map(lambda leaf: leaf[0], rows[0]))
    for time in range(0, len(rows), case.rows_per_add):
        chunk = rows[time : time + case.rows_per_add]
        state = add(state, stack_trees(chunk))
        oracle.add(chunk)
        valid = oracle.valid_starts()
        if valid:
            key = jax.random.fold_in(jax.random.key(2), time)
            sequences, info = sample(key, state, jnp.float32(0.9))
            drawn = np.asarray(info.indices)
            assert set(drawn.tolist()) == set(valid), f"after {time + case.rows_per_add} rows"
            some = jax.tree.map(lambda leaf: leaf[:40], sequences)
            assert_trees_match(some, oracle.batch(drawn[:40]))
            np.testing.assert_allclose(info.probabilities, 1 / len(valid), rtol=1e-6)
    assert oracle.evicted


def test_every_start_is_equally_likely() -> None:
    case = SEQUENCE_CASES["not_a_multiple"]
    replay = make_sequence(**case.sizes(), batch_size=40_000)
    rows = sequence_rows(case, np.random.default_rng(5), wraps=3)
    oracle = SequenceOracle(**case.geometry())
    state = replay.init(jax.tree.map(lambda leaf: leaf[0], rows[0]))
    for row in rows:
        state = quick_jit(replay.add)(state, stack_trees([row]))
    oracle.add(rows)
    _, info = quick_jit(replay.sample)(jax.random.key(0), state, jnp.float32(0.9))
    counts = np.bincount(np.asarray(info.indices))[sorted(oracle.valid_starts())]
    assert counts.sum() == 40_000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_sequence_spans_the_end_of_an_episode_and_keeps_its_flags() -> None:
    replay = make_sequence(num_envs=1, rows_per_env=8, rows_per_add=4, batch_size=2, length=3)
    first = np.array([True, False, True, False])
    terminated = np.array([True, False, False, False])
    rows = rows_from_streams(
        [stream_of(random_pieces(np.random.default_rng(0), count=1, longest=9), length=4)],
        obs_shape=(1,),
        obs_dtype=np.float32,
        with_extras=False,
    )
    block = stack_trees(rows)._replace(first=first[:, None], terminated=terminated[:, None])
    state = quick_jit(replay.add)(replay.init(jax.tree.map(lambda leaf: leaf[0], rows[0])), block)
    sequences, info = quick_jit(replay.sample)(jax.random.key(0), state, jnp.float32(0.9))
    assert set(np.asarray(info.indices).tolist()) <= {0, 1}
    for index, start in enumerate(np.asarray(info.indices)):
        np.testing.assert_array_equal(sequences.first[index], first[start : start + 3])
        np.testing.assert_array_equal(sequences.terminated[index], terminated[start : start + 3])
