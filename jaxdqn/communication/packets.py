"""Gradients as packets for a parameter server, compressed with error feedback."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.communication.compression import (
    BFLOAT16,
    KINDS,
    flatten,
    int8_code,
    layout,
    top_k_count,
    unflatten,
)
from jaxdqn.errors import reject
from jaxdqn.types import Array, PyTree


class PacketCode(NamedTuple):
    """Functions of the sender (``init``, ``encode``) and of the receiver (``decode``)."""

    init: Callable[[], PyTree]
    """``init() -> residual`` of zeros; empty without compression"""
    encode: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    """``encode(updates, residual) -> (packet, residual)``. The packet decodes to the updates plus
    the old residual, minus the new residual. If updates are not finite, the residual does not
    change, and the receiver must ignore the packet."""
    decode: Callable[[PyTree], PyTree]
    """``decode(packet) -> updates``"""
    packet_bytes: int


def make_packet_code(kind: str, like: PyTree, *, top_k_fraction: float = 0.01) -> PacketCode:
    """Make the packet code for updates with the shapes of ``like``.

    The codes are the same as in ``compressed_mean``: ``bfloat16``; ``int8`` with one float32 scale
    for each block of at most 256 elements; ``top_k``, the k largest elements by magnitude and
    their indices. ``none`` sends the tree unchanged.

    Args:
      kind: ``none``, ``bfloat16``, ``int8`` or ``top_k``.
      like: tree of float32 arrays, or of their shapes.
      top_k_fraction: above 0 and at most 1; k = ceil(top_k_fraction * n) of n elements.

    Raises:
      ValueError: if an argument is out of range.
    """
    if kind not in ("none", *KINDS):
        reject("compression", kind, f"one of none, {', '.join(KINDS)}")
    if not 0 < top_k_fraction <= 1:
        reject("top_k_fraction", top_k_fraction, "above 0 and at most 1")
    leaves, structure = jax.tree.flatten(like)
    size = sum(leaf.size for leaf in leaves)
    if kind == "none":
        return PacketCode(
            init=tuple,
            encode=lambda updates, residual: (updates, residual),
            decode=lambda packet: packet,
            packet_bytes=4 * size,
        )
    if kind == "top_k":
        k = top_k_count(top_k_fraction, size)
        encode_flat, decode_flat, elements = _top_k(k), _from_top_k(size), size
    else:
        shape = layout(kind, size, 1)
        code = BFLOAT16 if kind == "bfloat16" else int8_code(shape)
        encode_flat, decode_flat, elements = code.encode, code.decode, shape.blocks * shape.block

    def encode(updates: PyTree, residual: Array) -> tuple[PyTree, Array]:
        to_send = flatten(jax.tree.leaves(updates), elements) + residual
        packet = encode_flat(to_send)
        finite = jnp.all(jnp.isfinite(to_send))
        return packet, jnp.where(finite, to_send - decode_flat(packet), residual)

    def decode(packet: PyTree) -> PyTree:
        return jax.tree.unflatten(structure, unflatten(decode_flat(packet), leaves))

    packet = jax.eval_shape(encode_flat, jax.ShapeDtypeStruct((elements,), jnp.float32))
    return PacketCode(
        init=lambda: jnp.zeros(elements, jnp.float32),
        encode=encode,
        decode=decode,
        packet_bytes=packet.size * packet.dtype.itemsize,
    )


def _top_k(k: int) -> Callable[[Array], Array]:
    def encode(values: Array) -> Array:
        # Non-finite elements rank first, so that the receiver sees them.
        rank = jnp.where(jnp.isfinite(values), jnp.abs(values), jnp.inf)
        indices = jax.lax.top_k(rank, k)[1]
        return jnp.stack([indices, jax.lax.bitcast_convert_type(values[indices], jnp.int32)])

    return encode


def _from_top_k(size: int) -> Callable[[Array], Array]:
    def decode(packet: Array) -> Array:
        values = jax.lax.bitcast_convert_type(packet[1], jnp.float32)
        return jnp.zeros(size, jnp.float32).at[packet[0]].set(values, unique_indices=True)

    return decode
