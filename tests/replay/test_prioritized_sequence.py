"""The prioritised replay of sequences against its slow twin."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.replay import make_prioritized_sequence
from tests.oracles import Priorities, SequenceOracle, assert_trees_match, stack_trees
from tests.replay_cases import SEQUENCE_CASES, SequenceCase, sequence_rows
from tests.toys import quick_jit

BATCH = 40


class PriorityOracle(Priorities, SequenceOracle):
    """The slow twin, with a priority for each valid start."""


@functools.cache
def built(case: SequenceCase) -> tuple[Any, ...]:
    replay = make_prioritized_sequence(**case.sizes(), batch_size=BATCH, fan_out=4)
    return replay.init, quick_jit(replay.add), quick_jit(replay.sample), quick_jit(replay.update)


def leaves_of(state: Any, oracle: PriorityOracle) -> np.ndarray:
    return np.asarray(state.tree.levels[0]).ravel()[: oracle.leaves().size]


def fed(case: SequenceCase, *, wraps: int, each: Any) -> Any:
    """Feed streams; after each add replace the state by ``each(state, oracle, time)``."""
    init, add, *_ = built(case)
    rows = sequence_rows(case, np.random.default_rng(7), wraps=wraps)
    oracle = PriorityOracle(**case.geometry())
    state = init(jax.tree.map(lambda leaf: leaf[0], rows[0]))
    for time in range(0, len(rows), case.rows_per_add):
        chunk = rows[time : time + case.rows_per_add]
        state = add(state, stack_trees(chunk))
        oracle.add(chunk)
        np.testing.assert_allclose(leaves_of(state, oracle), oracle.leaves(), rtol=1e-6)
        state = each(state, oracle, time)
    return state


@pytest.mark.parametrize("case", SEQUENCE_CASES.values(), ids=SEQUENCE_CASES.keys())
def test_priorities_and_sequences_equal_the_twin_over_random_streams(case: SequenceCase) -> None:
    _, _, sample, update = built(case)
    rng = np.random.default_rng(3)

    def each(state: Any, oracle: PriorityOracle, time: int) -> Any:
        expected, valid = oracle.leaves(), oracle.valid_starts()
        if not valid:
            return state
        sequences, info = sample(jax.random.key(time), state, jnp.float32(0.9))
        flat = np.asarray(info.indices) % expected.size
        assert_trees_match(sequences, oracle.batch(flat))
        np.testing.assert_allclose(info.probabilities, expected[flat] / expected.sum(), rtol=1e-5)
        # A sequence drawn twice has one priority.
        errors = rng.exponential(size=expected.size).astype(np.float32)[flat] + 0.01
        oracle.update([valid[int(index)] for index in flat], errors)
        return update(state, info.indices, jnp.asarray(errors))

    fed(case, wraps=4, each=each)


@pytest.mark.parametrize("name", ["anywhere", "bits_k2", "not_a_multiple"])
def test_a_late_priority_never_revives_or_changes_a_sequence(name: str) -> None:
    case = SEQUENCE_CASES[name]
    _, _, sample, update = built(case)
    held: list[tuple[Any, list[tuple[int, int]]]] = []
    counts = {True: 0, False: 0}

    def each(state: Any, oracle: PriorityOracle, time: int) -> Any:
        valid, size = oracle.valid_starts(), oracle.leaves().size
        if valid:
            _, info = sample(jax.random.key(time), state, jnp.float32(0.9))
            held.append((info, [valid[int(index)] for index in np.asarray(info.indices) % size]))
        # Priorities arrive after one add, after one wrap of the ring, and after two.
        for late in (1, case.rows_per_env // case.rows_per_add, 2 * case.rows_per_env):
            if len(held) > late:
                info, drawn = held[-1 - late]
                for at in drawn:
                    counts[at in oracle.priorities] += 1
                level = np.float32(2.0 + len(held))
                state = update(state, info.indices, jnp.full(BATCH, level))
                oracle.update(drawn, np.full(BATCH, level))
                np.testing.assert_allclose(leaves_of(state, oracle), oracle.leaves(), rtol=1e-6)
        return state

    fed(case, wraps=5, each=each)
    assert min(counts.values()) > 100
