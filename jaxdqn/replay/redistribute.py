"""A replay divided anew over another number of devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxdqn.replay.prioritized import PrioritizedState, count_generations
from jaxdqn.replay.sum_tree import tree_of
from jaxdqn.replay.uniform import UniformState


def redistribute(state: Any, devices: int) -> Any:
    """Return the same rows and the same valid starts, divided over ``devices``.

    Not to be jitted. The rings of all devices stand at the same slot, since they
    are written together, so every row keeps its slot and only changes its device.

    Args:
        state: a replay's state of NumPy leaves [D, ...], of D devices whose environments follow
            one another.
        devices: D of the result; must divide the environments.
    """
    moved = {
        "storage": jax.tree.map(lambda leaf: _divide(leaf, devices), state.storage),
        "position": np.full(devices, state.position[0], np.int32),
        "size": np.full(devices, state.size[0], np.int32),
    }
    if isinstance(state, PrioritizedState):
        return PrioritizedState(**moved, **_divide_priorities(state, devices))
    return UniformState(**moved, **_divide_starts(state, devices))


def _divide(leaf: np.ndarray, devices: int) -> np.ndarray:
    """Divide [D, T, E, ...] anew: [devices, T, D * E / devices, ...]."""
    before, num_slots, each = leaf.shape[:3]
    envs, rest = before * each, leaf.shape[3:]
    by_env = np.moveaxis(leaf, 0, 1).reshape(num_slots, devices, envs // devices, *rest)
    return np.ascontiguousarray(np.moveaxis(by_env, 1, 0))


def _divide_priorities(state: Any, devices: int) -> dict[str, Any]:
    before, num_slots, each = state.storage.flags.shape
    num_rows = num_slots * before * each // devices
    leaves = state.tree.levels[0].reshape(before, -1)[:, : num_slots * each]
    divided = _divide(leaves.reshape(before, num_slots, each), devices).reshape(devices, num_rows)
    trees = [tree_of(part, state.tree.levels[0].shape[2]) for part in divided]
    return {
        "tree": jax.tree.map(lambda *leaves: np.stack(leaves), *trees),
        "max_priority": np.full(devices, state.max_priority.max(), np.float32),
        # Indices drawn before are not given back any more: any generation will do.
        "generation": np.full(devices, state.generation[0] % count_generations(num_rows), np.int32),
    }


def _divide_starts(state: Any, devices: int) -> dict[str, Any]:
    before, num_slots, each = state.storage.flags.shape
    per_device = before * each // devices
    slots, places = _live_starts(state)
    starts = np.zeros((devices, state.starts.shape[1] // each * per_device), np.int32)
    counts = np.zeros(devices, np.int32)
    # First in, first out: the oldest slot first, as they leave.
    order = np.lexsort((places, (slots - int(state.position[0])) % num_slots))
    slots, places = slots[order], places[order]
    for device in range(devices):
        mine = places // per_device == device
        flat = slots[mine] * per_device + places[mine] % per_device
        starts[device, : flat.size], counts[device] = flat, flat.size
    return {"starts": starts, "tail": np.zeros(devices, np.int32), "count": counts}


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
