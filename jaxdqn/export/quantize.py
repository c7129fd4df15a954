"""Quantisation of policy weights: bfloat16, or int8 with a scale for each output channel."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.types import Array, NormalizedParams, Params, PyTree

DTYPES = ("float32", "bfloat16", "int8")
_LEVELS = 127


class Layout(NamedTuple):
    """Structure of parameters, and the stored form of each leaf."""

    structure: Any
    """``PyTreeDef`` of the parameters"""
    kinds: tuple[str, ...]
    """Kind of each leaf: ``plain``, ``bfloat16`` or ``int8``. An ``int8`` leaf is stored as two
    weights, the integers and the scales; any other leaf as one."""


class Quantized(NamedTuple):
    """Parameters as stored weights."""

    weights: list[np.ndarray]
    layout: Layout

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return sum(leaf.nbytes for leaf in self.weights)


def quantize(params: Params, dtype: str) -> Quantized:
    """Convert parameters to stored weights of a dtype.

    Matrices and convolution kernels, float32 leaves of two axes or more, are stored in ``dtype``.
    All other leaves, such as biases and observation statistics, are unchanged, because they are
    small and errors in them are costly. int8 is symmetric about zero: the scale of an output
    channel, the last axis, is its largest magnitude divided by 127 (Jacob et al. 2018, section 2.1,
    with zero-point 0). bfloat16 is stored as uint16, which NumPy can write.

    Args:
        params: parameters of a network.
        dtype: one of ``DTYPES``.

    Raises:
        ValueError: if the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"quantize={dtype!r}: must be one of {', '.join(DTYPES)}")
    leaves, structure = jax.tree.flatten(params)
    eligible = jax.tree.leaves(_is_kernel(params))
    weights: list[np.ndarray] = []
    kinds = []
    for leaf, kernel in zip(map(np.asarray, leaves), eligible, strict=True):
        kind = dtype if kernel and dtype != "float32" else "plain"
        kinds.append(kind)
        weights += _stored(leaf, kind)
    return Quantized(weights, Layout(structure, tuple(kinds)))


def restore(layout: Layout, weights: list[Any]) -> Params:
    """Dequantise stored weights to parameters of the original dtypes.

    Args:
        layout: layout of the parameters.
        weights: weights stored by ``quantize``; bfloat16 weights may have dtype bfloat16 or uint16.
    """
    remaining = iter(weights)
    leaves: list[Array] = []
    for kind in layout.kinds:
        stored = jnp.asarray(next(remaining))
        if kind == "int8":
            stored = stored.astype(jnp.float32) * next(remaining)
        elif kind == "bfloat16":
            if stored.dtype != jnp.bfloat16:
                stored = jax.lax.bitcast_convert_type(stored, jnp.bfloat16)
            stored = stored.astype(jnp.float32)
        leaves.append(stored)
    return jax.tree.unflatten(layout.structure, leaves)


def _is_kernel(params: Params) -> PyTree:
    """Return a tree of bools, True for each matrix or convolution kernel of the network."""
    if isinstance(params, NormalizedParams):
        statistics = jax.tree.map(lambda leaf: False, params.observations)
        return NormalizedParams(_is_kernel(params.network), statistics)
    return jax.tree.map(lambda leaf: leaf.ndim >= 2 and leaf.dtype == jnp.float32, params)


def _stored(leaf: np.ndarray, kind: str) -> list[np.ndarray]:
    if kind == "bfloat16":
        return [np.asarray(leaf.astype(jnp.bfloat16)).view(np.uint16)]
    if kind == "plain":
        return [leaf]
    axes = tuple(range(leaf.ndim - 1))
    largest = np.abs(leaf).max(axis=axes, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(_LEVELS), np.float32(1)).astype(np.float32)
    return [np.clip(np.rint(leaf / scale), -_LEVELS, _LEVELS).astype(np.int8), scale]
