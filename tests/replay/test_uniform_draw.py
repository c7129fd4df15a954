"""Uniform draws: every valid start is equally likely, and no other row is ever drawn."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdqn.replay import make_uniform
from tests.oracles import (
    TransitionOracle,
    neighbour_replacing_draws,
    random_pieces,
    rows_from_streams,
    stack_trees,
    stream_of,
)
from tests.toys import quick_jit

NUM_ENVS, CAPACITY, PER_ADD, N_STEP, STACK = 3, 20, 2, 3, 2
DRAWS = 200_000


@functools.cache
def built() -> tuple[Any, Any, Any]:
    replay = make_uniform(
        num_envs=NUM_ENVS,
        rows_per_env=CAPACITY,
        rows_per_add=PER_ADD,
        batch_size=DRAWS,
        n_step=N_STEP,
        frame_stack=STACK,
    )
    return replay.init, quick_jit(replay.add), quick_jit(replay.sample)


@functools.cache
def fed(length: int) -> tuple[Any, TransitionOracle]:
    """Return the state of the replay and its twin after ``length`` rows of broken streams."""
    init, add, _ = built()
    rng = np.random.default_rng(7)
    streams = [
        stream_of(random_pieces(rng, count=30, longest=6), length=length, env=env)
        for env in range(NUM_ENVS)
    ]
    rows = rows_from_streams(streams, obs_shape=(2,), obs_dtype=np.float32, with_extras=False)
    oracle = TransitionOracle(
        num_envs=NUM_ENVS, rows_per_env=CAPACITY, n_step=N_STEP, frame_stack=STACK
    )
    oracle.add(rows)
    state = init(jax.tree.map(lambda leaf: leaf[0], rows[0]))
    for time in range(0, length, PER_ADD):
        state = add(state, stack_trees(rows[time : time + PER_ADD]))
    return state, oracle


def uniformity(draws: np.ndarray, oracle: TransitionOracle) -> float:
    """Return the chi-square p-value of equally likely starts; 0 if an invalid one was drawn."""
    counts = np.bincount(draws, minlength=NUM_ENVS * CAPACITY)
    valid = sorted(oracle.valid_starts())
    if counts[valid].sum() < len(draws):
        return 0.0
    return float(stats.chisquare(counts[valid]).pvalue)


@pytest.mark.parametrize("length", [8, CAPACITY, 3 * CAPACITY + 6], ids=["part", "full", "wrapped"])
def test_every_valid_start_is_equally_likely_and_no_other_is_drawn(length: int) -> None:
    state, oracle = fed(length)
    _, _, sample = built()
    _, info = sample(jax.random.key(11), state, jnp.float32(0.99))
    assert 1 < len(oracle.valid_starts()) < NUM_ENVS * min(length, CAPACITY)
    assert uniformity(np.asarray(info.indices), oracle) > 1e-4


def test_probabilities_are_one_over_the_number_of_valid_starts() -> None:
    state, oracle = fed(3 * CAPACITY + 6)
    _, _, sample = built()
    _, info = sample(jax.random.key(0), state, jnp.float32(0.99))
    np.testing.assert_allclose(info.probabilities, 1 / len(oracle.valid_starts()), rtol=1e-6)


def test_the_draws_depend_on_the_key() -> None:
    state, _ = fed(3 * CAPACITY + 6)
    _, _, sample = built()
    draws = [
        np.asarray(sample(jax.random.key(seed), state, jnp.float32(0.99))[1].indices)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    agreement = np.mean(draws[0] == draws[2])
    expected = 1 / len(fed(3 * CAPACITY + 6)[1].valid_starts())
    assert abs(agreement - expected) < 0.01


def test_draws_of_one_batch_are_independent() -> None:
    state, oracle = fed(3 * CAPACITY + 6)
    _, _, sample = built()
    _, info = sample(jax.random.key(4), state, jnp.float32(0.99))
    valid = sorted(oracle.valid_starts())
    ranks = np.searchsorted(valid, np.asarray(info.indices)).reshape(-1, 2)
    pairs = np.bincount(ranks[:, 0] * len(valid) + ranks[:, 1], minlength=len(valid) ** 2)
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_the_chi_square_test_detects_a_sampler_that_takes_the_neighbour() -> None:
    _, oracle = fed(3 * CAPACITY + 6)
    stored = [
        oracle.index(time, env)
        for env in range(NUM_ENVS)
        for time in range(oracle.oldest, oracle.newest + 1)
    ]
    rng = np.random.default_rng(0)
    valid = set(oracle.valid_starts())
    assert uniformity(neighbour_replacing_draws(rng, stored, valid, DRAWS), oracle) < 1e-12
    fair = rng.choice(sorted(valid), size=DRAWS)
    assert uniformity(fair, oracle) > 1e-4
    one_invalid = np.append(fair[:-1], next(index for index in stored if index not in valid))
    assert uniformity(one_invalid, oracle) == 0
