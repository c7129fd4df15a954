"""Collective operations between data-parallel replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, PyTree

DEVICE_AXIS = "devices"


def device_collectives(size: int, *, deterministic: bool = False) -> Collectives:
    """Return the collectives of a trainer that ``across_devices`` will map over ``size``.

    Args:
      size: D
      deterministic: average by gathering and then adding up in the order of the
        devices: the same to the bit however they are divided over processes, at D
        times the bytes received.
    """
    if size == 1:
        return identity_collectives

    def mean_in_order(tree: PyTree) -> PyTree:
        gathered = jax.lax.all_gather(tree, DEVICE_AXIS)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gathered)

    def mean(tree: PyTree) -> PyTree:
        return jax.lax.pmean(tree, DEVICE_AXIS)

    return Collectives(
        mean=mean_in_order if deterministic else mean,
        sum=lambda tree: jax.lax.psum(tree, DEVICE_AXIS),
        max=lambda tree: jax.lax.pmax(tree, DEVICE_AXIS),
        index=lambda: jax.lax.axis_index(DEVICE_AXIS),
        size=size,
        all_gather=lambda tree: jax.lax.all_gather(tree, DEVICE_AXIS),
        all_to_all=lambda tree: jax.tree.map(
            lambda leaf: jax.lax.all_to_all(leaf, DEVICE_AXIS, 0, 0), tree
        ),
    )


class Collectives(NamedTuple):
    """How one device speaks to its peers; identity when it has none."""

    mean: Callable[[PyTree], PyTree]
    sum: Callable[[PyTree], PyTree]
    max: Callable[[PyTree], PyTree]
    index: Callable[[], Array]  # type: ignore[assignment]
    """``index() -> [] int32``, this device's place among its peers."""
    size: int
    all_gather: Callable[[PyTree], PyTree]
    """leaves [...] -> [D, ...], every device's, in their order."""
    all_to_all: Callable[[PyTree], PyTree]
    """leaves [D, ...] -> [D, ...]: slice i goes to device i, and comes from it."""


def _same(tree: PyTree) -> PyTree:
    return tree


def _with_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)


identity_collectives = Collectives(
    mean=_same,
    sum=_same,
    max=_same,
    index=lambda: jnp.int32(0),
    size=1,
    all_gather=_with_axis,
    all_to_all=_same,
)
"""The collectives of a device without peers."""
