"""Observations of the suites: every rule, against NumPy or by hand."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.envs.suites.observations import Bounds, bounded, flatten, one_hot, parts, planes


class Inner(NamedTuple):
    z: Any
    a: Any


@chex.dataclass
class Outer:
    pairs: Any
    mask: Any


def test_the_categories_of_a_grid_become_planes():
    grid = np.random.default_rng(0).integers(0, 3, (4, 5, 2)).astype(np.uint8)
    found = planes(jnp.asarray(grid), (3, 4))
    assert (found.shape, found.dtype) == ((4, 5, 7), bool)
    np.testing.assert_array_equal(found[..., :3], np.eye(3, dtype=bool)[grid[..., 0]])
    np.testing.assert_array_equal(found[..., 3:], np.eye(4, dtype=bool)[grid[..., 1]])


def test_values_outside_the_bounds_have_no_class():
    found = one_hot(jnp.array([-2, -1, 1, 2, 255], jnp.int32), Bounds(-1, 1))
    expected = [[False] * 3, [True, False, False], [False, False, True], [False] * 3, [False] * 3]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "bounds", "expected"),
    [
        (np.int32([2]), Bounds(1, 2), np.array([[False, True]])),
        (np.int32([10, 110]), Bounds(10, 210), np.float32([0, 0.5])),
        (np.int8([-3]), None, np.float32([-3])),
        (np.float16([0.5]), Bounds(0, 1), np.float32([0.5])),
        (np.uint8([255]), None, np.uint8([255])),
        (np.array([True]), Bounds(0, 1), np.array([True])),
        (3, Bounds(0, 100), np.float32(0.03)),
    ],
    ids=["few", "many", "unbounded", "float", "uint8", "bool", "python"],
)
def test_numbers_become_what_a_network_can_learn_from(values, bounds, expected):
    found = bounded(values, bounds)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_structure_is_flattened_in_the_order_of_its_leaves_without_the_mask():
    pairs = [{"b": jnp.int32(1), "a": jnp.float32([[5, 6]])}, Inner(jnp.int32(7), jnp.int32(8))]
    observation = Outer(pairs=pairs, mask=jnp.ones(4, bool))
    named = parts(observation, without=("mask",))
    assert set(named) == {"pairs.0.a", "pairs.0.b", "pairs.1.z", "pairs.1.a"}
    leaves = [leaf for leaf in jax.tree.leaves(observation) if leaf.shape != (4,)]
    assert all(a is b for a, b in zip(named.values(), leaves, strict=True))
    found = flatten(observation, {"pairs.0.b": Bounds(0, 1)}, without=("mask",))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [5, 6, 0, 1, 7, 8])


def test_a_structure_of_bools_is_bool_and_one_part_keeps_its_shape():
    board, mask = jnp.ones((2, 2), bool), jnp.ones(3, bool)
    found = flatten({"a": board, "b": mask})
    assert (found.shape, found.dtype) == ((7,), bool)
    assert flatten({"a": board, "b": mask}, without=("b",)).shape == (2, 2)
