"""A uniform replay divided anew over another number of devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxdqn.replay.uniform import UniformState


def redistribute(state: Any, devices: int) -> Any:
    """Return the same rows and the same valid starts, divided over ``devices``.

    Not to be jitted. The rings of all devices stand at the same slot, since they
    are written together, so every row keeps its slot and only changes its device.

    Args:
        state: a ``UniformState`` of NumPy leaves [D, ...], of D devices whose environments follow
            one another.
        devices: D of the result; must divide the environments.
    """
    before, num_slots, each = state.storage.flags.shape
    envs = before * each
    per_device = envs // devices
    position = int(state.position[0])
    capacity = state.starts.shape[1] // each * per_device

    def divide(leaf: np.ndarray) -> np.ndarray:
        by_env = np.moveaxis(leaf, 0, 1).reshape(num_slots, envs, *leaf.shape[3:])
        parts = by_env.reshape(num_slots, devices, per_device, *leaf.shape[3:])
        return np.ascontiguousarray(np.moveaxis(parts, 1, 0))

    slots, places = _live_starts(state)
    starts = np.zeros((devices, capacity), np.int32)
    counts = np.zeros(devices, np.int32)
    # First in, first out: the oldest slot first, as they leave.
    order = np.lexsort((places, (slots - position) % num_slots))
    slots, places = slots[order], places[order]
    for device in range(devices):
        mine = places // per_device == device
        flat = slots[mine] * per_device + places[mine] % per_device
        starts[device, : flat.size], counts[device] = flat, flat.size
    fields: dict[str, Any] = dict(
        storage=jax.tree.map(divide, state.storage),
        position=np.full(devices, position, np.int32),
        size=np.full(devices, state.size[0], np.int32),
        starts=starts,
        tail=np.zeros(devices, np.int32),
        count=counts,
    )
    return UniformState(**fields)


def _live_starts(state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return slot and environment, counted over all devices, of every valid start."""
    each = state.storage.flags.shape[2]
    slots, places = [], []
    for device, (starts, tail, count) in enumerate(
        zip(state.starts, state.tail, state.count, strict=True)
    ):
        live = starts[(tail + np.arange(count)) % starts.size]
        slots.append(live // each)
        places.append(device * each + live % each)
    return np.concatenate(slots), np.concatenate(places)
