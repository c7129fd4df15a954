"""Pytree helpers: packing of small leaves, norms and sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.tree import global_norm, is_small, pack, square, tree_bytes, unpack

SHAPES = [(3, 2), (), (20,), (1, 4)]


def make_tree(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {f"leaf {i}": jnp.asarray(rng.normal(size=s), dtype) for i, s in enumerate(SHAPES)}


@pytest.mark.parametrize("limit", [0, 4, 10, 100])
def test_unpack_restores_the_packed_tree(limit):
    tree = {**make_tree(), "integers": jnp.arange(3), "empty": ()}
    packed = pack(tree, limit)
    sizes = [np.prod(shape, dtype=int) for shape in SHAPES]
    small = sum(size for size in sizes if size <= limit)
    assert (packed["small"].size if small else len(packed["small"])) == small
    assert len(packed["large"]) == 1 + sum(size > limit for size in sizes)
    restored = unpack(packed, jax.eval_shape(lambda: tree), limit)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, restored, tree)


def test_only_small_float32_leaves_are_packed():
    assert is_small(jnp.zeros(4), limit=4)
    assert not is_small(jnp.zeros(5), limit=4)
    assert not is_small(jnp.zeros(4, jnp.bfloat16), limit=4)
    assert not is_small(jnp.zeros(4, jnp.int32), limit=4)


def test_square_and_global_norm_are_those_of_all_elements():
    tree = make_tree()
    flat = np.concatenate([np.ravel(leaf) for leaf in tree.values()]).astype(np.float64)
    np.testing.assert_allclose(square(tree), flat @ flat, rtol=1e-6)
    np.testing.assert_allclose(global_norm(tree), np.linalg.norm(flat), rtol=1e-6)
    assert square({}) == 0.0


def test_tree_bytes_counts_arrays_and_shapes_alike():
    tree = {"float": jnp.zeros((3, 2)), "bytes": jnp.zeros(5, jnp.uint8), "empty": ()}
    assert tree_bytes(tree) == 3 * 2 * 4 + 5
    assert tree_bytes(jax.eval_shape(lambda: tree)) == tree_bytes(tree)
