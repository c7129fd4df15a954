"""The scan of the training program: the packed form equals the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.backend_choices import backend, choices, tracing_for
from jaxdqn.loops import PACK_LIMIT, scan
from tests.trees import assert_identical

CARRY = {
    "key": jax.random.key(3),
    "keys": jax.random.split(jax.random.key(4), 2),
    "float": jnp.float32([1.5, np.nan, -0.0]),
    "scalar": jnp.float32(2),
    "matrix": jnp.ones((2, 3), jnp.float32),
    "count": jnp.int32(-7),
    "word": jnp.uint32([2**32 - 1]),
    "flags": jnp.bool_([[True, False], [False, True]]),
    "bytes": jnp.uint8([1, 2]),
    "large": jnp.zeros(PACK_LIMIT + 1, jnp.int32),
    "empty": (),
}


def step(carry, x):
    carry = {
        **carry,
        "key": jax.random.fold_in(carry["key"], 1),
        "float": carry["float"] * x,
        "count": carry["count"] + 1,
        "flags": ~carry["flags"],
        "large": carry["large"] + carry["count"],
    }
    return carry, (carry["count"], carry["scalar"] + x)


def loop(carry, xs):
    return scan(step, carry, xs, unroll=True)


XS = jnp.float32([1, 2, 4, 8, 16, 32, 64, 128, 256])


def test_a_packed_scan_is_bitwise_identical_to_a_plain_one():
    plain = jax.lax.scan(step, CARRY, XS)
    with tracing_for("gpu"):
        assert_identical(loop(CARRY, XS), plain)


def carried(jaxpr):
    """Return the number of carries and the unrolled steps of the only scan of a program."""
    (equation,) = (found for found in jaxpr.eqns if found.primitive.name == "scan")
    return equation.params["num_carry"], equation.params["unroll"]


def test_only_accelerators_pack_and_unroll():
    assert backend() == "cpu"
    # JAX takes what the step returns as it was, such as the matrix, out of the carry.
    assert carried(jax.make_jaxpr(loop)(CARRY, XS)) == (5, 1)
    with tracing_for("gpu"):
        # The vector, and the large leaf.
        assert carried(jax.make_jaxpr(lambda *a: loop(*a))(CARRY, XS)) == (2, choices().unroll)
        unpacked = jax.make_jaxpr(lambda carry: scan(step, carry, XS, pack=False))(CARRY)
        assert carried(unpacked) == (5, 1)
    assert backend() == "cpu"


def test_a_step_that_changes_a_type_is_an_error_as_in_a_plain_scan():
    def changes(carry, _):
        return {"count": carry["count"].astype(jnp.float32)}, None

    with tracing_for("gpu"):
        with pytest.raises(TypeError, match=r"not float32\[\] for int32\[\]"):
            scan(changes, {"count": jnp.int32(0)}, length=2)
        with pytest.raises(ValueError, match="count"):
            scan(lambda carry, _: ({}, None), {"count": jnp.int32(0)}, length=2)
