"""Gradients averaged over devices in few bytes; what one step loses, later ones send."""

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
"""Elements, at most, that share a scale."""
_LEVELS = 127.0


class ResidualState(NamedTuple):
    """What a device has yet to send: unlike other states, not the same in every replica."""

    residual: Array
    """[D*c] float32 (``top_k``: [n]), in units of this device's own gradient."""


class Layout(NamedTuple):
    """How n elements are divided: D slices, one for each device, of blocks."""

    blocks: int
    """In a slice."""
    block: int
    """Elements."""


class _Code(NamedTuple):
    encode: Callable[[Array], Array]
    """[..., c] float32 -> [..., bytes or words], what a collective carries."""
    decode: Callable[[Array], Array]
    """Back to [..., c] float32."""


def compressed_mean(
    kind: str, collectives: Collectives, *, top_k_fraction: float = 0.01
) -> optax.GradientTransformation:
    """Average updates over devices, sent in a short form with error feedback.

    Each device adds to its gradient what it could not send before (Seide et al.
    2014, section 3; Karimireddy et al. 2019, algorithm 2), so that over any number
    of steps the sum of what is applied is the sum of the true means, less the
    mean of the residuals. All tensors go as one vector:

    * ``bfloat16``, ``int8``: slice i of every device goes to device i, which adds
      them up in float32 and sends their mean, encoded once more, to all. What the
      second encoding loses goes to the residual of that device (cf. Tang et al.
      2019, "DoubleSqueeze"). int8 has a float32 scale for each block of at most 256
      elements (Dettmers 2016; Alistarh et al. 2017).
    * ``top_k``: every device sends all others its k largest elements and where they
      are (Aji and Heafield 2017; Lin et al. 2018): 8k bytes to each of D - 1.

    All replicas decode the same codes and so apply the same to the bit; sums are
    made in a fixed order, so that ``deterministic`` asks for nothing more. An input
    that is not finite gives a mean and a residual that are not: the guard, which
    undoes optimiser states too, takes both back.

    Args:
      kind: ``bfloat16``, ``int8`` or ``top_k``.
      collectives: of the D devices.
      top_k_fraction: k = ceil(top_k_fraction * n) of n elements, at least 1.

    Raises:
      ValueError: naming the argument, its value and what would be right.
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
        wanted = _flatten(leaves, state.residual.size) + state.residual
        if kind == "top_k":
            k = top_k_count(top_k_fraction, wanted.size)
            mean, residual = _sparse_mean(wanted, k, collectives)
        else:
            size = sum(leaf.size for leaf in leaves)
            code = _BFLOAT16 if kind == "bfloat16" else _int8(layout(kind, size, collectives.size))
            mean, residual = _coded_mean(wanted, code, collectives)
        return jax.tree.unflatten(structure, _divide(mean, leaves)), ResidualState(residual)

    return optax.GradientTransformation(init, update)


def layout(kind: str, size: int, devices: int) -> Layout:
    """Return how ``size`` elements are divided, with the least padding at the end."""
    if kind == "bfloat16":
        return Layout(1, -(-size // devices))
    blocks = max(1, -(-size // (devices * _BLOCK)))
    return Layout(blocks, -(-size // (devices * blocks)))


def top_k_count(fraction: float, size: int) -> int:
    """Return how many of ``size`` elements ``top_k`` sends."""
    return max(1, math.ceil(fraction * size))


def _padded(kind: str, size: int, devices: int) -> int:
    if kind == "top_k":
        return size
    return devices * math.prod(layout(kind, size, devices))


def _coded_mean(wanted: Array, code: _Code, collectives: Collectives) -> tuple[Array, Array]:
    """Average [D*c] by two collectives of codes; return the mean and the residual, [D*c]."""
    size = collectives.size
    slices = wanted.reshape(size, -1)
    sent = code.encode(slices)
    share = jnp.sum(code.decode(collectives.all_to_all(sent)), axis=0) / size
    share_sent = code.encode(share)
    mean = code.decode(collectives.all_gather(share_sent))
    residual = slices - code.decode(sent)
    # A part of the mean is D times as much of one device's gradient.
    lost = size * (share - code.decode(share_sent))
    return mean.ravel(), residual.at[collectives.index()].add(lost).ravel()


def _sparse_mean(wanted: Array, k: int, collectives: Collectives) -> tuple[Array, Array]:
    """Average the k largest of [n] of each device; return the mean and the residual, [n]."""
    # What is not finite comes first, so that all see it.
    size = jnp.where(jnp.isfinite(wanted), jnp.abs(wanted), jnp.inf)
    _, indices = jax.lax.top_k(size, k)
    values = jax.lax.bitcast_convert_type(wanted[indices], jnp.int32)
    packets = collectives.all_gather(jnp.stack([indices, values]))

    # Device by device: a scatter with repeated indices adds up in any order on a GPU, and the
    # replicas would part.
    def add(total: Array, packet: Array) -> tuple[Array, None]:
        values = jax.lax.bitcast_convert_type(packet[1], jnp.float32)
        return total.at[packet[0]].add(values, unique_indices=True), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(wanted), packets)
    return total / collectives.size, wanted.at[indices].set(0.0, unique_indices=True)


def _encode_bfloat16(values: Array) -> Array:
    # Not the conversion alone: the compiler may take one to bfloat16 and back for none, and
    # nothing would be left for the residual.
    rounded = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    # As whole numbers: XLA:CPU widens collectives of bfloat16 to float32.
    return jax.lax.bitcast_convert_type(rounded.astype(jnp.bfloat16), jnp.uint16)


def _decode_bfloat16(words: Array) -> Array:
    return jax.lax.bitcast_convert_type(words, jnp.bfloat16).astype(jnp.float32)


_BFLOAT16 = _Code(_encode_bfloat16, _decode_bfloat16)


def _int8(shape: Layout) -> _Code:
    """Return the code of blocks, each followed by the four bytes of its scale."""

    def encode(values: Array) -> Array:
        blocks = values.reshape(*values.shape[:-1], *shape)
        scale = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True) / _LEVELS
        # Blocks of zeros, or next to it, are sent as zeros; written so that NaN is not.
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

    return _Code(encode, decode)


def _flatten(leaves: list[Array], size: int) -> Array:
    """Return all leaves as one float32 vector of ``size`` elements, zeros at its end."""
    flat = [leaf.ravel().astype(jnp.float32) for leaf in leaves]
    missing = size - sum(leaf.size for leaf in leaves)
    return jnp.concatenate([*flat, jnp.zeros(missing, jnp.float32)])


def _divide(flat: Array, like: list[Array]) -> list[Array]:
    """Return the leaves of which ``_flatten`` made ``flat``."""
    leaves, start = [], 0
    for leaf in like:
        part = flat[start : start + leaf.size]
        leaves.append(part.reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return leaves
