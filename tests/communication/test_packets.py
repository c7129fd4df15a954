"""Packets of gradients with error feedback."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.communication.packets import make_packet_code

LIKE = {"kernel": jnp.zeros((30, 20)), "bias": jnp.zeros(20)}
BYTES = {"none": 2480, "bfloat16": 1240, "int8": 633, "top_k": 56}
"""620 elements: float32; two bytes each; three blocks of 207, padded, and their scales; 7 pairs."""


def gradients(seed: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed))
    return {
        "kernel": jax.random.normal(keys[0], (30, 20)),
        "bias": 100 * jax.random.normal(keys[1], (20,)),
    }


@pytest.mark.parametrize("kind", BYTES)
def test_decoded_packets_and_the_residual_add_up_to_the_gradients(kind: str) -> None:
    code = make_packet_code(kind, LIKE, top_k_fraction=0.01)
    assert code.packet_bytes == BYTES[kind]
    residual, received, sent = code.init(), LIKE, LIKE
    for seed in range(5):
        updates = gradients(seed)
        packet, residual = code.encode(updates, residual)
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(packet)) == code.packet_bytes
        received = jax.tree.map(jnp.add, received, code.decode(packet))
        sent = jax.tree.map(jnp.add, sent, updates)
    if kind == "none":
        jax.tree.map(np.testing.assert_array_equal, received, sent)
        return
    flat = jnp.concatenate([received["bias"], received["kernel"].ravel()]) + residual[:620]
    wanted = jnp.concatenate([sent["bias"], sent["kernel"].ravel()])
    np.testing.assert_allclose(flat, wanted, atol=2e-4)
    assert float(jnp.max(jnp.abs(residual))) > 1e-3


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "top_k"])
def test_a_gradient_that_is_not_finite_leaves_the_residual(kind: str) -> None:
    code = make_packet_code(kind, LIKE)
    _, residual = code.encode(gradients(0), code.init())
    wrong = gradients(1) | {"bias": jnp.full(20, jnp.nan)}
    packet, after = code.encode(wrong, residual)
    np.testing.assert_array_equal(after, residual)
    assert not bool(jnp.all(jnp.isfinite(code.decode(packet)["bias"])))


def test_invalid_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="compression='zip': must be one of none, bfloat16"):
        make_packet_code("zip", LIKE)
    with pytest.raises(ValueError, match=r"top_k_fraction=0.0: must be above 0"):
        make_packet_code("top_k", LIKE, top_k_fraction=0.0)
