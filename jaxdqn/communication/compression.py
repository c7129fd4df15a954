"""Compressed averaging of gradients over devices, with error feedback."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdqn.communication.collectives import Collectives
from jaxdqn.types import Array, PyTree

KINDS = ("bfloat16", "int8", "top_k")
_BLOCK = 256
"""Maximum number of elements that share a scale."""
_LEVELS = 127.0
"""Largest int8 code."""


class ResidualState(NamedTuple):
    """Accumulated compression error of a device; differs between replicas."""

    residual: PyTree
    """[D*c] float32 for slices of c elements (``top_k``: [n]), in units of the gradient of this
    device. PowerSGD: the residual of each matrix [n, m], and the starts [m, r] of the next power
    iteration."""


class Layout(NamedTuple):
    """Division of n elements into D slices, one per device, and of each slice into equal blocks."""

    blocks: int
    """Blocks in a slice."""
    block: int
    """Elements in a block."""


class Code(NamedTuple):
    """Encoder and decoder of numbers for a collective."""

    encode: Callable[[Array], Array]
    """Encode [..., c] float32 for a collective: uint16 [..., c], int8 [..., blocks, block + 4]."""
    decode: Callable[[Array], Array]
    """Decode to [..., c] float32; the inverse of ``encode`` up to rounding."""


def compressed_mean(
    kind: str, collectives: Collectives, *, top_k_fraction: float = 0.01
) -> optax.GradientTransformation:
    """Average updates over devices in compressed form, with error feedback.

    Each device adds to its gradient the residual, that is, the accumulated compression error of
    earlier steps (Seide et al. 2014, section 3; Karimireddy et al. 2019, algorithm 2). Over any
    number of steps, the sum of the applied means is therefore the sum of the true means minus the
    mean of the residuals. All tensors are sent as one vector:

    * ``bfloat16``, ``int8``: slice i of every device is sent to device i (all-to-all). Device i
      sums the slices in float32, encodes their mean and sends it to all devices (all-gather). The
      error of the second encoding is added to the residual of device i (cf. Tang et al. 2019,
      "DoubleSqueeze"). int8 uses one float32 scale for each block of at most 256 elements (Dettmers
      2016; Alistarh et al. 2017).
    * ``top_k``: every device sends its k largest elements by magnitude and their indices to all
      others (Aji and Heafield 2017; Lin et al. 2018): 8k bytes to each of D - 1 devices.

    All replicas decode the same codes, so their updates are bitwise identical. The order of the
    sums is fixed, so ``deterministic`` has no effect. A non-finite input makes the mean non-finite,
    and possibly the residual; the guard then restores the optimiser state, which
    includes the residual.

    Args:
      kind: ``bfloat16``, ``int8`` or ``top_k``.
      collectives: collectives over the D devices.
      top_k_fraction: above 0 and at most 1; k = ceil(top_k_fraction * n) of n elements.

    Raises:
      ValueError: if an argument is out of range.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")
    if not 0 < top_k_fraction <= 1:
        raise ValueError(f"top_k_fraction={top_k_fraction}: must be above 0 and at most 1")

    def init(params: PyTree) -> ResidualState:
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        return ResidualState(jnp.zeros(_padded(kind, size, collectives.size), jnp.float32))

    def update(
        updates: PyTree, state: ResidualState, params: PyTree | None = None
    ) -> tuple[PyTree, ResidualState]:
        leaves, structure = jax.tree.flatten(updates)
        to_send = flatten(leaves, state.residual.size) + state.residual
        if kind == "top_k":
            k = top_k_count(top_k_fraction, to_send.size)
            mean, residual = _sparse_mean(to_send, k, collectives)
        else:
            size = sum(leaf.size for leaf in leaves)
            code = (
                BFLOAT16 if kind == "bfloat16" else int8_code(layout(kind, size, collectives.size))
            )
            mean, residual = _coded_mean(to_send, code, collectives)
        return jax.tree.unflatten(structure, unflatten(mean, leaves)), ResidualState(residual)

    return optax.GradientTransformation(init, update)


def layout(kind: str, size: int, devices: int) -> Layout:
    """Return the layout of ``size`` elements with minimal padding at the end."""
    if kind == "bfloat16":
        return Layout(1, -(-size // devices))
    blocks = max(1, -(-size // (devices * _BLOCK)))
    return Layout(blocks, -(-size // (devices * blocks)))


def top_k_count(fraction: float, size: int) -> int:
    """Return k, the number of ``size`` elements that ``top_k`` sends."""
    return max(1, math.ceil(fraction * size))


def _padded(kind: str, size: int, devices: int) -> int:
    if kind == "top_k":
        return size
    return devices * math.prod(layout(kind, size, devices))


def _coded_mean(to_send: Array, code: Code, collectives: Collectives) -> tuple[Array, Array]:
    """Average [D*c] by an all-to-all and an all-gather of codes.

    Returns the mean and this device's residual, [D*c] each.
    """
    size = collectives.size
    slices = to_send.reshape(size, -1)
    codes = code.encode(slices)
    # [c], this device's slice of the mean.
    slice_mean = jnp.sum(code.decode(collectives.all_to_all(codes)), axis=0) / size
    mean_codes = code.encode(slice_mean)
    mean = code.decode(collectives.all_gather(mean_codes))
    residual = slices - code.decode(codes)
    # An error of the mean is D times as large in units of one device's gradient.
    mean_error = size * (slice_mean - code.decode(mean_codes))
    return mean.ravel(), residual.at[collectives.index()].add(mean_error).ravel()


def _sparse_mean(to_send: Array, k: int, collectives: Collectives) -> tuple[Array, Array]:
    """Average the k largest elements (by magnitude) of each device's ``to_send`` [n].

    Returns the mean and this device's residual, [n] each.
    """
    # Non-finite elements rank first, so that every replica receives them.
    size = jnp.where(jnp.isfinite(to_send), jnp.abs(to_send), jnp.inf)
    _, indices = jax.lax.top_k(size, k)
    values = jax.lax.bitcast_convert_type(to_send[indices], jnp.int32)
    packets = collectives.all_gather(jnp.stack([indices, values]))

    # Add one device after the other: on a GPU a scatter with repeated indices sums in an arbitrary
    # order, so the replicas would no longer be identical.
    def add(total: Array, packet: Array) -> tuple[Array, None]:
        values = jax.lax.bitcast_convert_type(packet[1], jnp.float32)
        return total.at[packet[0]].add(values, unique_indices=True), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(to_send), packets)
    return total / collectives.size, to_send.at[indices].set(0.0, unique_indices=True)


def _encode_bfloat16(values: Array) -> Array:
    # The compiler may remove a conversion to bfloat16 and back, which would make the residual zero.
    # It does not remove reduce_precision.
    rounded = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    # Send as uint16, because XLA:CPU widens collectives of bfloat16 to float32.
    return jax.lax.bitcast_convert_type(rounded.astype(jnp.bfloat16), jnp.uint16)


def _decode_bfloat16(words: Array) -> Array:
    return jax.lax.bitcast_convert_type(words, jnp.bfloat16).astype(jnp.float32)


BFLOAT16 = Code(_encode_bfloat16, _decode_bfloat16)


def int8_code(shape: Layout) -> Code:
    """Return the int8 code: each block is followed by the four bytes of its scale."""

    def encode(values: Array) -> Array:
        blocks = values.reshape(*values.shape[:-1], *shape)
        scale = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True) / _LEVELS
        # Blocks of (nearly) zeros are sent as zeros. A NaN scale fails the comparison and remains
        # NaN.
        scale = jnp.where(scale < jnp.finfo(jnp.float32).tiny, 0.0, scale)
        steps = blocks * jnp.where(scale == 0, 0.0, 1.0 / scale)
        codes = jnp.round(steps).astype(jnp.int8)
        scale_bytes = jax.lax.bitcast_convert_type(scale[..., 0], jnp.int8)
        return jnp.concatenate([codes, scale_bytes], axis=-1)

    def decode(packet: Array) -> Array:
        codes = packet[..., : shape.block].astype(jnp.float32)
        scale = jax.lax.bitcast_convert_type(packet[..., shape.block :], jnp.float32)
        blocks = codes * jnp.expand_dims(scale, -1)
        return blocks.reshape(*packet.shape[:-2], -1)

    return Code(encode, decode)


def flatten(leaves: list[Array], size: int) -> Array:
    """Return all leaves as one float32 vector, padded with zeros to ``size`` elements."""
    flat = [leaf.ravel().astype(jnp.float32) for leaf in leaves]
    missing = size - sum(leaf.size for leaf in leaves)
    return jnp.concatenate([*flat, jnp.zeros(missing, jnp.float32)])


def unflatten(flat: Array, like: list[Array]) -> list[Array]:
    """Invert ``flatten``: return leaves of the shapes and dtypes of ``like``."""
    leaves, start = [], 0
    for leaf in like:
        part = flat[start : start + leaf.size]
        leaves.append(part.reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return leaves
