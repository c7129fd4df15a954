"""Estimated operations of small programs, counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.envs import operations
from jaxdqn.envs.operations import count_operations

VECTOR = jax.ShapeDtypeStruct((8,), jnp.float32)
MATRIX = jax.ShapeDtypeStruct((32, 32), jnp.float32)
PICTURE = jax.ShapeDtypeStruct((1, 10, 10, 4), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 4, 16), jnp.float32)
KEY = jax.eval_shape(lambda: jax.random.key(0))
LOOP = operations._LOOP


def doubled(x):
    return x + x


def repeated(times):
    return lambda x: jax.lax.scan(lambda x, _: (doubled(x), None), x, None, length=times)


def until_large(x):
    return jax.lax.while_loop(lambda x: x[0] < 9, doubled, x)


def either(x):
    return jax.lax.cond(x[0] < 9, doubled, lambda x: doubled(x) * x, x)


def convolved(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)


PROGRAMS = {
    "an element is an operation": (lambda x: x * x + x, (VECTOR,), 16),
    "moving elements is free": (lambda x: x.reshape(2, 4).T, (VECTOR,), 0),
    "a reduction reads its input": (lambda x: x.max(), (VECTOR,), 8),
    "a product has its multiply-adds": (lambda x: x @ x, (MATRIX,), 32**3),
    "a convolution has its multiply-adds": (convolved, (PICTURE, KERNEL), 8 * 8 * 16 * 3 * 3 * 4),
    "a function in a function": (jax.jit(lambda x: jax.jit(doubled)(x) * x), (VECTOR,), 16),
    "every step of a scan": (repeated(50), (VECTOR,), 50 * (LOOP + 8)),
    "a scan in a scan": (
        lambda x: jax.lax.scan(lambda x, _: (repeated(5)(x)[0], None), x, None, length=3),
        (VECTOR,),
        3 * (LOOP + 5 * (LOOP + 8)),
    ),
    "random words": (
        lambda key: jax.random.bits(key, (100,)),
        (KEY,),
        LOOP + 100 * operations._RANDOM_WORD,
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_operations_are_counted_as_by_hand(name):
    function, arguments, expected = PROGRAMS[name]
    assert count_operations(function, *arguments)[0] == expected


def test_a_loop_of_unknown_length_counts_as_a_hundred_steps():
    once = 8 + 1  # doubling, and a comparison
    assert count_operations(until_large, VECTOR)[0] == pytest.approx(100 * (LOOP + once), rel=0.01)


def test_every_branch_of_a_conditional_counts():
    branches = 8 + 16
    assert branches <= count_operations(either, VECTOR)[0] <= branches + 4


def test_a_sort_and_an_index_count_more_than_an_element():
    count, _ = count_operations(jax.lax.sort, VECTOR)
    assert count == operations._COMPARISON * 8 * 3
    moved, _ = count_operations(lambda x: x.at[jnp.array([1, 5])].set(0.0), VECTOR)
    assert 2 * operations._INDEXED <= moved < 8 * operations._INDEXED


def test_the_shapes_of_the_result_are_returned():
    _, (total, pair) = count_operations(lambda x: (x.sum(), (x, x > 0)), VECTOR)
    assert (total.shape, total.dtype) == ((), np.float32)
    assert (pair[1].shape, pair[1].dtype) == ((8,), bool)
