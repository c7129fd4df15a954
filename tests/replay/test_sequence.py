"""The sequence replay against its slow twin."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.replay import make_sequence
from tests.oracles import (
    SequenceOracle,
    assert_trees_match,
    live_starts,
    random_pieces,
    rows_from_streams,
    stack_trees,
    stream_of,
)
from tests.toys import quick_jit


@pytest.mark.parametrize(
    ("num_envs", "capacity", "per_add", "length", "obs_shape", "obs_dtype"),
    [
        (1, 8, 1, 3, (2,), np.float32),
        (3, 12, 2, 5, (11,), np.bool_),
        (2, 10, 1, 8, (3, 2), np.uint8),
        (3, 12, 4, 1, (3, 5), np.bool_),
    ],
    ids=["plain", "bits_k2", "nearly_the_complete_ring", "length_one_k4"],
)
def test_starts_and_sequences_equal_the_twin_over_random_streams(
    num_envs: int,
    capacity: int,
    per_add: int,
    length: int,
    obs_shape: tuple[int, ...],
    obs_dtype: Any,
) -> None:
    replay = make_sequence(
        num_envs=num_envs,
        rows_per_env=capacity,
        rows_per_add=per_add,
        batch_size=128,
        length=length,
    )
    add, sample = quick_jit(replay.add), quick_jit(replay.sample)
    rng = np.random.default_rng(5)
    streams = [
        stream_of(random_pieces(rng, count=30, longest=6), length=4 * capacity, env=env, skip=env)
        for env in range(num_envs)
    ]
    rows = rows_from_streams(streams, obs_shape=obs_shape, obs_dtype=obs_dtype, with_extras=True)
    oracle = SequenceOracle(num_envs=num_envs, rows_per_env=capacity, length=length)
    state = replay.init(jax.tree.map(lambda leaf: leaf[0], rows[0]))
    for time in range(0, len(rows), per_add):
        chunk = rows[time : time + per_add]
        state = add(state, stack_trees(chunk))
        oracle.add(chunk)
        valid = oracle.valid_starts()
        assert sorted(live_starts(state)) == sorted(valid), f"after {time + per_add} rows"
        if valid:
            key = jax.random.fold_in(jax.random.key(2), time)
            sequences, info = sample(key, state, jnp.float32(0.9))
            assert_trees_match(sequences, oracle.batch(np.asarray(info.indices)))
            np.testing.assert_allclose(info.probabilities, 1 / len(valid), rtol=1e-6)


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
