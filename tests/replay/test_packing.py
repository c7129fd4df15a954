"""Boolean arrays packed to bits and unpacked."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.replay.packing import pack_bits, unpack_bits

SHAPES = [(1,), (7,), (8,), (9,), (3, 5), (10, 10, 4), ()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)], ids=str)
def test_unpacking_restores_the_packed_array(
    shape: tuple[int, ...], leading: tuple[int, ...]
) -> None:
    obs = np.random.default_rng(len(leading)).random((*leading, *shape)) < 0.5
    stored = pack_bits(jnp.asarray(obs), len(leading))
    (bits,) = jax.tree.leaves(stored)
    assert bits.dtype == jnp.uint8
    assert bits.shape == (*leading, math.ceil(math.prod(shape) / 8))
    back = unpack_bits(stored)
    assert back.dtype == jnp.bool_
    np.testing.assert_array_equal(back, obs, strict=True)


def test_every_byte_unpacks_to_its_bits() -> None:
    every = np.array([[(byte >> bit) & 1 for bit in range(8)] for byte in range(256)], bool)
    stored = pack_bits(jnp.asarray(every), 1)
    assert len(np.unique(np.asarray(jax.tree.leaves(stored)[0]))) == 256
    np.testing.assert_array_equal(unpack_bits(stored), every)


def test_bits_gathered_while_packed_unpack_with_their_new_leading_axes() -> None:
    obs = np.random.default_rng(1).random((6, 3, 5)) < 0.5
    index = np.array([[5, 0], [2, 2], [1, 4]])
    gathered = jax.tree.map(lambda leaf: leaf[index], pack_bits(jnp.asarray(obs), 1))
    np.testing.assert_array_equal(unpack_bits(gathered), obs[index])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32])
def test_arrays_that_are_not_boolean_are_returned_unchanged(dtype: type) -> None:
    obs = jnp.arange(12, dtype=dtype).reshape(2, 6)
    stored = pack_bits(obs, 1)
    assert stored is obs
    assert unpack_bits(stored) is obs
