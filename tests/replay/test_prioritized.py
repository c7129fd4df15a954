"""The prioritised replay against its slow twin, over streams with every kind of ending."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdqn.replay import importance_weights, make_prioritized
from tests.oracles import (
    Priorities,
    TransitionOracle,
    assert_trees_match,
    rows_from_streams,
    stack_trees,
)
from tests.replay_cases import CASES, Case, oracle_example, random_streams
from tests.toys import quick_jit

GAMMA = 0.9


class PriorityOracle(Priorities, TransitionOracle):
    """The slow twin, with a priority for each valid start."""


@functools.cache
def built(case: Case, batch_size: int = 128) -> tuple[Any, ...]:
    replay = make_prioritized(
        num_envs=case.num_envs,
        rows_per_env=case.rows_per_env,
        rows_per_add=case.rows_per_add,
        batch_size=batch_size,
        n_step=case.n_step,
        frame_stack=case.frame_stack,
        fan_out=4,
    )
    return replay.init, quick_jit(replay.add), quick_jit(replay.sample), quick_jit(replay.update)


def flat_of(info: Any, case: Case) -> np.ndarray:
    return np.asarray(info.indices) % (case.num_envs * case.rows_per_env)


def leaves_of(state: Any, case: Case) -> np.ndarray:
    return np.asarray(state.tree.levels[0]).ravel()[: case.num_envs * case.rows_per_env]


def fed(case: Case, *, wraps: int, seed: int = 20, each: Any = None) -> tuple[Any, PriorityOracle]:
    """Feed streams; after each add replace the state by ``each(state, oracle, time)``."""
    init, add, *_ = built(case)
    streams = random_streams(case, np.random.default_rng(seed), wraps=wraps, skip=0)
    rows = rows_from_streams(
        streams, obs_shape=case.obs_shape, obs_dtype=case.obs_dtype, with_extras=case.with_extras
    )
    sizes = {name: getattr(case, name) for name in ("num_envs", "rows_per_env", "n_step")}
    oracle = PriorityOracle(frame_stack=case.frame_stack, **sizes)
    state = init(oracle_example(rows))
    for time in range(0, len(rows), case.rows_per_add):
        chunk = rows[time : time + case.rows_per_add]
        state = add(state, stack_trees(chunk))
        oracle.add(chunk)
        if each is not None:
            state = each(state, oracle, time)
    return state, oracle


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_priorities_and_transitions_equal_the_twin_over_random_streams(case: Case) -> None:
    _, _, sample, update = built(case)
    rng = np.random.default_rng(3)

    def each(state: Any, oracle: PriorityOracle, time: int) -> Any:
        expected = oracle.leaves()
        np.testing.assert_allclose(leaves_of(state, case), expected, rtol=1e-6)
        valid = oracle.valid_starts()
        if not valid:
            return state
        batch, info = sample(jax.random.key(time), state, jnp.float32(GAMMA))
        flat = flat_of(info, case)
        assert_trees_match(batch, oracle.batch(flat, GAMMA), rtol=1e-5)
        np.testing.assert_allclose(info.probabilities, expected[flat] / expected.sum(), rtol=1e-5)
        # A row drawn twice has one TD error.
        errors = rng.exponential(size=expected.size).astype(np.float32)[flat] + 0.01
        oracle.update([valid[int(index)] for index in flat], errors)
        return update(state, info.indices, jnp.asarray(errors))

    fed(case, wraps=4, each=each)


@pytest.mark.parametrize("name", ["bits", "stacked_bits_k4", "smallest_stacked"])
def test_a_late_priority_never_revives_or_changes_a_row(name: str) -> None:
    case = CASES[name]
    _, _, sample, update = built(case)
    held: list[tuple[Any, list[tuple[int, int]]]] = []
    invalid_count = valid_count = 0

    def each(state: Any, oracle: PriorityOracle, time: int) -> Any:
        nonlocal invalid_count, valid_count
        valid = oracle.valid_starts()
        if valid:
            _, info = sample(jax.random.key(time), state, jnp.float32(GAMMA))
            held.append((info, [valid[int(index)] for index in flat_of(info, case)]))
        # Priorities arrive after a few adds, after one wrap of the ring, and after two.
        for late in (1, case.rows_per_env // case.rows_per_add, 2 * case.rows_per_env):
            if len(held) > late:
                info, drawn = held[-1 - late]
                still_valid = [at in oracle.priorities for at in drawn]
                invalid_count, valid_count = (
                    invalid_count + still_valid.count(False),
                    valid_count + still_valid.count(True),
                )
                level = np.float32(2.0 + len(held))
                state = update(state, info.indices, jnp.full(len(drawn), level))
                oracle.update(drawn, np.full(len(drawn), level))
                np.testing.assert_allclose(leaves_of(state, case), oracle.leaves(), rtol=1e-6)
        return state

    fed(case, wraps=5, each=each)
    assert invalid_count > 1000
    assert valid_count > 100


def test_rows_are_drawn_in_proportion_to_their_priority_and_no_others_are() -> None:
    case = CASES["stacked_bits_k4"]
    state, oracle = fed(case, wraps=3)
    _, _, sample, update = built(case, 40_000)
    rng = np.random.default_rng(0)
    valid = sorted(oracle.valid_starts())
    assert 3 < len(valid) < case.num_envs * case.rows_per_env
    priorities = rng.exponential(size=len(valid)).astype(np.float32)
    # Indices encode the generation of their rows, so take them from a large draw.
    _, info = sample(jax.random.key(0), state, jnp.float32(GAMMA))
    by_flat = dict(
        zip(flat_of(info, case).tolist(), np.asarray(info.indices).tolist(), strict=True)
    )
    assert sorted(by_flat) == valid
    state = update(state, jnp.array([by_flat[at] for at in valid]), jnp.asarray(priorities))
    _, info = sample(jax.random.key(1), state, jnp.float32(GAMMA))
    counts = np.bincount(flat_of(info, case), minlength=case.num_envs * case.rows_per_env)
    assert counts.sum() == counts[valid].sum()
    expected = priorities.astype(np.float64)
    expected *= counts.sum() / expected.sum()
    # Stratified draws vary less than independent ones, so this is never rejected by chance.
    assert stats.chisquare(counts[valid], expected).pvalue > 1e-3


def test_each_draw_is_from_its_part_of_the_sum() -> None:
    case = CASES["pixels"]
    state, _ = fed(
        case, wraps=3, each=lambda state, oracle, time: _with_random_priorities(state, case, time)
    )
    _, _, sample, _ = built(case)
    leaves = leaves_of(state, case).astype(np.float64)
    ends = np.cumsum(leaves) / leaves.sum()
    starts = ends - leaves / leaves.sum()
    parts = np.arange(128) / 128
    for seed in range(20):
        _, info = sample(jax.random.key(seed), state, jnp.float32(GAMMA))
        flat = flat_of(info, case)
        assert (ends[flat] > parts - 1e-6).all()
        assert (starts[flat] < parts + 1 / 128 + 1e-6).all()


def _with_random_priorities(state: Any, case: Case, time: int) -> Any:
    """Set random priorities for drawn rows."""
    _, _, sample, update = built(case)
    if not leaves_of(state, case).any():
        return state
    _, info = sample(jax.random.key(time), state, jnp.float32(GAMMA))
    return update(state, info.indices, jax.random.uniform(jax.random.key(time + 1), (128,)) + 0.1)


def test_indices_distinguish_generations_up_to_the_limit_of_int32() -> None:
    case = CASES["one_step"]
    _, _, sample, update = built(case)
    state, _ = fed(case, wraps=3)
    generations = 2**31 // (case.num_envs * case.rows_per_env)
    state = state._replace(generation=jnp.int32(generations - 1), position=jnp.int32(0))
    _, info = sample(jax.random.key(0), state, jnp.float32(GAMMA))
    assert int(info.indices.min()) >= 0
    after = update(state, info.indices, jnp.full(128, 7.0))
    assert (leaves_of(after, case)[flat_of(info, case)] == 7.0).all()


def test_a_priority_of_zero_does_not_remove_a_row() -> None:
    case = CASES["one_step"]
    _, _, sample, update = built(case)
    state, oracle = fed(case, wraps=2)
    _, info = sample(jax.random.key(0), state, jnp.float32(GAMMA))
    state = update(state, info.indices, jnp.zeros(128))
    assert np.count_nonzero(leaves_of(state, case)) == len(oracle.valid_starts())


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0])
def test_importance_weights_are_the_formula_of_the_paper_divided_by_the_maximum(
    exponent: float,
) -> None:
    probabilities = np.array([0.5, 0.01, 0.2, 0.01, 0.28], np.float32)
    weights = importance_weights(jnp.asarray(probabilities), jnp.float32(exponent), lambda x: x)
    expected = (5 * probabilities.astype(np.float64)) ** -exponent
    np.testing.assert_allclose(weights, expected / expected.max(), rtol=1e-5)


def test_weights_are_correct_for_the_mixture_of_devices() -> None:
    # Two replays; one has more rows, and ten times the priorities of the other.
    rng = np.random.default_rng(1)
    shards = [rng.random(30), 10 * rng.random(50)]
    values = [rng.normal(size=30), rng.normal(size=50)]
    shares = [shard / shard.sum() for shard in shards]
    least = jnp.float32(min(share.min() for share in shares))
    # Up to a common factor, the expectation of a weighted value over the mixture is the mean over
    # the rows of all devices.
    total = 0.0
    for share, value in zip(shares, values, strict=True):
        weights = importance_weights(jnp.float32(share), jnp.float32(1), lambda _: -least)
        total += (share * np.asarray(weights)) @ value / 2
    factor = float(least) / 2 * 80
    assert total == pytest.approx(factor * np.concatenate(values).mean(), rel=1e-4)


@pytest.mark.parametrize("name", ["num_envs", "rows_per_env", "batch_size", "frame_stack"])
def test_sizes_below_one_are_rejected_by_name(name: str) -> None:
    sizes = {"num_envs": 2, "rows_per_env": 16, "rows_per_add": 1, "batch_size": 4}
    with pytest.raises(ValueError, match=f"{name}=0"):
        make_prioritized(**{**sizes, name: 0})
