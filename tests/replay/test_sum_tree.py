"""The sum tree against plain NumPy sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdqn.replay.sum_tree import draw, init_tree, leaves_at, set_leaves, set_runs, total
from tests.toys import bitwise_jit, quick_jit

SIZES = [(1, 2), (5, 4), (16, 16), (17, 16), (300, 8), (5000, 16)]


def make_tree(leaves, fan_out=16):
    leaves = np.asarray(leaves, np.float32)
    index = jnp.arange(leaves.size, dtype=jnp.int32)
    return set_leaves(init_tree(leaves.size, fan_out), index, jnp.asarray(leaves))


def leaves_of(tree, capacity):
    return np.asarray(tree.levels[0]).ravel()[:capacity]


def assert_sums(tree, capacity):
    """Assert that every sum equals its children up to the rounding of one summation."""
    for below, above in zip(tree.levels, tree.levels[1:], strict=False):
        sums = np.asarray(below, np.float64).sum(axis=1)
        parents = np.asarray(above).ravel()
        np.testing.assert_allclose(parents[: sums.size], sums, rtol=2e-6)
        assert not parents[sums.size :].any(), "padding must stay empty"
    assert not np.asarray(tree.levels[0]).ravel()[capacity:].any()
    expected = np.asarray(tree.levels[0], np.float64).sum()
    np.testing.assert_allclose(float(total(tree)), expected, rtol=1e-5)


def drawn(tree, strata, offsets=None):
    strata = jnp.asarray(strata, jnp.float32)
    offsets = jnp.zeros_like(strata) if offsets is None else jnp.asarray(offsets, jnp.float32)
    index, leaf = quick_jit(draw)(tree, strata, offsets)
    np.testing.assert_array_equal(leaf, leaves_at(tree, index))
    return np.asarray(index)


@pytest.mark.parametrize(("capacity", "fan_out"), SIZES)
def test_leaves_and_sums_equal_those_of_an_array(capacity, fan_out):
    rng = np.random.default_rng(capacity)
    write = quick_jit(set_leaves)
    tree, expected = init_tree(capacity, fan_out), np.zeros(capacity, np.float32)
    past = tree.levels[0].size
    for _ in range(20):
        index = rng.permutation(np.append(np.arange(capacity), [past] * 40))[:32]
        values = rng.random(index.size).astype(np.float32) * (rng.random(index.size) < 0.7)
        values = values.astype(np.float32)
        tree = write(tree, jnp.asarray(index, jnp.int32), jnp.asarray(values))
        expected[index[index < capacity]] = values[index < capacity]
        np.testing.assert_array_equal(leaves_of(tree, capacity), expected)
        assert_sums(tree, capacity)


@pytest.mark.parametrize("length", [1, 15, 40, 299])
def test_runs_equal_separate_writes_wherever_they_wrap(length):
    capacity, rng = 300, np.random.default_rng(length)
    write = quick_jit(lambda tree, start, values, mask: set_runs(
        tree, [(start, values, mask)], capacity
    ))  # fmt: skip
    tree = make_tree(rng.random(capacity))
    for start in [0, 1, 7, 16, 255, 256, 284, 285, 298, 299]:
        expected = leaves_of(tree, capacity).copy()
        values, mask = rng.random(length).astype(np.float32), rng.random(length) < 0.8
        index = (start + np.arange(length)) % capacity
        expected[index[mask]] = values[mask]
        tree = write(tree, jnp.int32(start), jnp.asarray(values), jnp.asarray(mask))
        np.testing.assert_array_equal(leaves_of(tree, capacity), expected)
        assert_sums(tree, capacity)


def test_an_index_written_twice_counts_once():
    tree = set_leaves(init_tree(40, 8), jnp.array([3, 3, 3, 7]), jnp.array([2.0, 2.0, 2.0, 1.0]))
    assert float(total(tree)) == 3.0
    tree = set_leaves(tree, jnp.array([3, 3]), jnp.array([5.0, 6.0]))
    assert float(total(tree)) in (6.0, 7.0)
    assert_sums(tree, 40)


def test_after_ten_million_updates_the_root_is_the_sum_of_the_leaves():
    capacity, batch, rounds = 20_000, 1_000, 10_000

    @bitwise_jit  # optimised, since it runs for long
    def run(key, tree):
        def update(tree, key):
            bits = jax.random.bits(key, (2, batch), jnp.uint32)
            index = (bits[0] % capacity).astype(jnp.int32)
            # Over ten orders of magnitude, where updates by differences would lose small values.
            values = 10.0 ** ((bits[1] >> 8).astype(jnp.float32) * (10 / 2**24) - 5)
            return set_leaves(tree, index, values), None

        return jax.lax.scan(update, tree, jax.random.split(key, rounds))[0]

    tree = run(jax.random.key(0), init_tree(capacity))
    assert np.count_nonzero(leaves_of(tree, capacity)) > 0.99 * capacity
    assert_sums(tree, capacity)


@pytest.mark.parametrize(("capacity", "fan_out"), SIZES)
def test_the_leaf_at_a_position_is_that_of_the_cumulative_sum(capacity, fan_out):
    rng = np.random.default_rng(capacity)
    # Integers, so that every sum is exact.
    leaves = rng.integers(0, 4, capacity).astype(np.float32)
    leaves[rng.integers(capacity)] = 2.0
    tree = make_tree(leaves, fan_out)
    ends = np.cumsum(leaves)
    positions = np.arange(0, ends[-1], 0.5, dtype=np.float32)
    expected = np.searchsorted(ends, positions, side="right")
    np.testing.assert_array_equal(drawn(tree, positions), expected)
    np.testing.assert_array_equal(drawn(tree, np.zeros_like(positions), positions), expected)


@pytest.mark.parametrize("where", ["first", "last", "middle", "every third"])
def test_a_leaf_of_zero_is_never_drawn_even_at_the_ends(where):
    capacity, rng = 1000, np.random.default_rng(5)
    leaves = np.zeros(capacity, np.float32)
    places = {"first": [0], "last": [999], "middle": [437], "every third": np.arange(1, 999, 3)}
    leaves[places[where]] = 10.0 ** rng.uniform(-6, 6, len(places[where]))
    tree = make_tree(leaves)
    ends = np.cumsum(leaves, dtype=np.float32)
    edges = np.concatenate([ends, [0.0, float(total(tree))]]).astype(np.float32)
    edges = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, np.inf)])
    edges = np.append(edges, [-1.0, 2 * edges.max(), np.float32(1e30)])
    assert (leaves[drawn(tree, edges)] > 0).all()


def test_leaves_are_drawn_in_proportion():
    rng = np.random.default_rng(2)
    leaves = rng.random(400).astype(np.float32) ** 3
    leaves[::7] = 0.0
    tree, count = make_tree(leaves, 8), 400_000
    uniform = rng.random(count)
    counts = np.bincount(drawn(tree, uniform * float(total(tree))), minlength=400)
    valid = leaves > 0
    assert counts[~valid].sum() == 0
    expected = leaves[valid].astype(np.float64)
    expected *= count / expected.sum()
    assert stats.chisquare(counts[valid], expected).pvalue > 1e-3


def test_two_numbers_resolve_positions_that_one_float_cannot():
    capacity, near = 2**22, 32
    tree = make_tree(np.full(capacity, 0.3))
    # Near the end of the total float32 resolves only 2.4 steps per leaf.
    stratum = np.float32(float(total(tree)) * 0.9)
    offsets = np.linspace(0, 0.3 * near, 64 * near, endpoint=False, dtype=np.float32)
    counts = np.bincount(drawn(tree, np.full_like(offsets, stratum), offsets))
    counts = counts[counts > 0]
    # Each leaf but the first and last has 64 positions, up to rounding at its ends.
    assert np.abs(counts[1:-1] - 64).max() <= 8
    single = np.bincount(drawn(tree, stratum + offsets))
    single = single[single > 0]
    assert np.abs(single[1:-1] - 64).max() > 8, "a single float would be enough"


@pytest.mark.parametrize(("capacity", "fan_out", "names"), [(0, 16, "capacity"), (4, 1, "fan_out")])
def test_a_tree_without_leaves_or_branches_is_rejected(capacity, fan_out, names):
    with pytest.raises(ValueError, match=names):
        init_tree(capacity, fan_out)
