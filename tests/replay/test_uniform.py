"""The uniform replay against its slow twin, over streams with every kind of ending."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdqn.replay import make_uniform
from tests.oracles import (
    ENDINGS,
    Piece,
    Stream,
    TransitionOracle,
    assert_trees_match,
    live_starts,
    random_pieces,
    rows_from_streams,
    stack_trees,
    stream_of,
)
from tests.replay_cases import CASES, Case, oracle_example, random_streams, rows_to_feed
from tests.toys import quick_jit

GAMMA = 0.9


@functools.cache
def built(case: Case) -> tuple[Any, Any, Any]:
    """Return ``init`` and the jitted ``add`` and ``sample``, compiled once for each case."""
    replay = make_uniform(
        num_envs=case.num_envs,
        rows_per_env=case.rows_per_env,
        rows_per_add=case.rows_per_add,
        batch_size=256,
        n_step=case.n_step,
        frame_stack=case.frame_stack,
    )
    return replay.init, quick_jit(replay.add), quick_jit(replay.sample)


def check_against_twin(case: Case, streams: list[Stream], seed: int) -> None:
    """Feed streams, and after every add compare starts, counters and a batch with the twin."""
    init, add, sample = built(case)
    rows = rows_from_streams(
        streams,
        obs_shape=case.obs_shape,
        obs_dtype=case.obs_dtype,
        with_extras=case.with_extras,
    )
    oracle = TransitionOracle(
        num_envs=case.num_envs,
        rows_per_env=case.rows_per_env,
        n_step=case.n_step,
        frame_stack=case.frame_stack,
    )
    state = init(oracle_example(rows))
    for time in range(0, len(rows), case.rows_per_add):
        chunk = rows[time : time + case.rows_per_add]
        state = add(state, stack_trees(chunk))
        oracle.add(chunk)
        added = len(oracle.history)
        assert int(state.position) == added % case.rows_per_env
        assert int(state.size) == min(added, case.rows_per_env)
        valid = oracle.valid_starts()
        assert sorted(live_starts(state)) == sorted(valid), f"after {added} rows"
        if valid:
            key = jax.random.fold_in(jax.random.key(seed), time)
            batch, info = sample(key, state, jnp.float32(GAMMA))
            expected = oracle.batch(np.asarray(info.indices), GAMMA)
            assert_trees_match(batch, expected, rtol=1e-5)
            np.testing.assert_allclose(info.probabilities, 1 / len(valid), rtol=1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_starts_and_transitions_equal_the_twin_over_random_streams(case: Case) -> None:
    rng = np.random.default_rng(20)
    for skip in (0, 1):
        streams = random_streams(case, rng, wraps=4, skip=skip)
        check_against_twin(case, streams, seed=skip)


@pytest.mark.parametrize("case", [CASES["atari_like"], CASES["smallest_k4"]], ids=["atari", "k4"])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_starts_and_transitions_equal_the_twin_when_every_episode_is_alike(
    case: Case, ending: str, steps: int
) -> None:
    streams = [
        stream_of([Piece(steps, ending)], length=rows_to_feed(case, wraps=2), env=env, skip=env)
        for env in range(case.num_envs)
    ]
    check_against_twin(case, streams, seed=steps)


@pytest.mark.parametrize(
    "case", [CASES["smallest_stacked"], CASES["smallest_k2"]], ids=["e3", "k2"]
)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_starts_and_transitions_equal_the_twin_for_any_stream(case: Case, data: Any) -> None:
    piece = st.builds(Piece, st.integers(1, 7), st.sampled_from(ENDINGS))
    streams = [
        stream_of(
            data.draw(st.lists(piece, min_size=1, max_size=6)),
            length=rows_to_feed(case, wraps=2),
            env=env,
            skip=data.draw(st.integers(0, 3)),
        )
        for env in range(case.num_envs)
    ]
    check_against_twin(case, streams, seed=0)


def test_a_vmapped_population_of_replays_equals_separate_ones() -> None:
    case = CASES["stacked_bits_k4"]
    init, add, sample = built(case)
    rng = np.random.default_rng(3)
    members = []
    for _ in range(2):
        streams = [
            stream_of(random_pieces(rng, count=20, longest=5), length=32, env=env)
            for env in range(case.num_envs)
        ]
        members.append(
            rows_from_streams(
                streams, obs_shape=case.obs_shape, obs_dtype=case.obs_dtype, with_extras=True
            )
        )
    separate = [init(oracle_example(rows)) for rows in members]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *separate)
    add_together = quick_jit(jax.vmap(add.__wrapped__))
    for time in range(0, 32, 4):
        chunks = [stack_trees(rows[time : time + 4]) for rows in members]
        separate = [add(state, chunk) for state, chunk in zip(separate, chunks, strict=True)]
        together = add_together(together, stack_trees(chunks))
    keys = jax.random.split(jax.random.key(5), 2)
    gamma = jnp.float32(GAMMA)
    batches = quick_jit(jax.vmap(sample.__wrapped__, in_axes=(0, 0, None)))(keys, together, gamma)
    for member in range(2):
        actual = jax.tree.map(lambda leaf, member=member: leaf[member], (together, batches))
        expected = (separate[member], sample(keys[member], separate[member], gamma))
        assert_trees_match(actual, jax.tree.map(np.asarray, expected), rtol=1e-6)


def test_update_returns_the_state_unchanged() -> None:
    replay = make_uniform(num_envs=1, rows_per_env=8, rows_per_add=1, batch_size=4)
    rows = rows_from_streams(
        [stream_of([Piece(3, "terminated")], length=1)],
        obs_shape=(3,),
        obs_dtype=np.float32,
        with_extras=False,
    )
    state = replay.init(oracle_example(rows))
    assert replay.update(state, jnp.arange(4, dtype=jnp.int32), jnp.ones(4)) is state
