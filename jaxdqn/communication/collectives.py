"""Collective operations between data-parallel replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.types import Array, PyTree

DEVICE_AXIS = "devices"


def device_collectives(size: int, *, deterministic: bool = False) -> Collectives:
    """Return the collectives for a trainer that will be mapped over ``size`` devices.

    Args:
      size: D, number of devices; 1 gives ``identity_collectives``.
      deterministic: average by an all-gather and a sum in device order. The mean is then
        bitwise identical however the devices are divided among processes, but each device
        receives the leaves of all D devices.
    """
    if size == 1:
        return identity_collectives

    def mean_in_order(tree: PyTree) -> PyTree:
        gathered = jax.lax.all_gather(tree, DEVICE_AXIS)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gathered)

    def mean(tree: PyTree) -> PyTree:
        return jax.lax.pmean(tree, DEVICE_AXIS)

    # Profiles show every collective under this name, all-gather and all-to-all included.
    named = jax.named_scope("all-reduce")
    return Collectives(
        mean=named(mean_in_order if deterministic else mean),
        sum=named(lambda tree: jax.lax.psum(tree, DEVICE_AXIS)),
        max=named(lambda tree: jax.lax.pmax(tree, DEVICE_AXIS)),
        index=lambda: jax.lax.axis_index(DEVICE_AXIS),
        size=size,
        all_gather=named(lambda tree: jax.lax.all_gather(tree, DEVICE_AXIS)),
        all_to_all=named(
            lambda tree: jax.tree.map(
                lambda leaf: jax.lax.all_to_all(leaf, DEVICE_AXIS, 0, 0), tree
            )
        ),
    )


class Collectives(NamedTuple):
    """Collective operations of one data-parallel replica."""

    mean: Callable[[PyTree], PyTree]
    sum: Callable[[PyTree], PyTree]
    max: Callable[[PyTree], PyTree]
    index: Callable[[], Array]  # type: ignore[assignment]
    """``index() -> [] int32``, the index of this replica."""
    size: int
    """D, the number of replicas."""
    all_gather: Callable[[PyTree], PyTree]
    """Leaves [...] -> [D, ...]: the leaves of all replicas, in order of replica index."""
    all_to_all: Callable[[PyTree], PyTree]
    """Leaves [D, ...] -> [D, ...]: slice i is sent to replica i, and result i is received from
    it."""


def _identity(tree: PyTree) -> PyTree:
    return tree


def _with_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)


identity_collectives = Collectives(
    mean=_identity,
    sum=_identity,
    max=_identity,
    index=lambda: jnp.int32(0),
    size=1,
    all_gather=_with_axis,
    all_to_all=_identity,
)
"""The collectives of a single replica."""
