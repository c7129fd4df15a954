"""Boolean arrays stored eight to a byte."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.types import Array, PyTree

# Masks in the order of packbits. On XLA:CPU masking is as fast as the best table
# lookup, and half the time of gathering unpacked booleans (256 rows of 400).
_MASKS = np.array([128, 64, 32, 16, 8, 4, 2, 1], dtype=np.uint8)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedBits:
    """A boolean array ``[..., *shape]`` as ``[..., ceil(size / 8)]`` bytes."""

    bits: Array
    """[..., bytes] uint8"""
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """The trailing axes that were packed."""


def pack(obs: Array, num_leading: int) -> PyTree:
    """Pack a boolean array's trailing axes; give any other array back as it is.

    Args:
      obs: ``[leading..., O]``
      num_leading: how many leading axes to keep.
    """
    if obs.dtype != jnp.bool_:
        return obs
    leading, shape = obs.shape[:num_leading], obs.shape[num_leading:]
    flat = obs.reshape(*leading, math.prod(shape))
    return PackedBits(bits=jnp.packbits(flat, axis=-1), shape=shape)


def unpack(stored: PyTree) -> Array:
    """Undo ``pack``, whatever the leading axes are now."""
    if not isinstance(stored, PackedBits):
        return stored
    leading = stored.bits.shape[:-1]
    masks = _MASKS.reshape(*(1,) * stored.bits.ndim, 8)
    bits = (stored.bits[..., None] & masks) != 0
    size = math.prod(stored.shape)
    flat = bits.reshape(*leading, 8 * stored.bits.shape[-1])[..., :size]
    return flat.reshape(*leading, *stored.shape)
