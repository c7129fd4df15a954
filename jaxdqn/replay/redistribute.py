"""Redistribute a replay over a different number of devices."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxdqn.replay.prioritized import PrioritizedState, count_generations
from jaxdqn.replay.prioritized_sequence import PrioritizedSequenceState
from jaxdqn.replay.sequence import SequenceState
from jaxdqn.replay.sum_tree import tree_from_leaves
from jaxdqn.replay.uniform import UniformState

_BUILT_IN = (UniformState, PrioritizedState, SequenceState, PrioritizedSequenceState)


def redistribute(state: Any, devices: int, *, stride: int = 1) -> Any:
    """Divide the same rows and valid starts over a different number of devices.

    Cannot be jitted. The rings of all devices have the same position, because they are written
    together. Every row therefore keeps its slot; only its device and its environment index change.

    Args:
        state: replay state with NumPy leaves [D, ...]. The environments of the D devices are
            numbered consecutively, device by device.
        devices: new number of devices; must divide the total number of environments.
        stride: slots from one start of a sequence to the next, in a replay of sequences.

    Raises:
        ValueError: if the replay is not one of this library.
    """
    if not isinstance(state, _BUILT_IN):
        raise ValueError("replay: must be a built-in one to resume on another number of devices")
    shared = {
        "storage": jax.tree.map(lambda leaf: _divide(leaf, devices), state.storage),
        "position": np.full(devices, state.position[0], np.int32),
        "size": np.full(devices, state.size[0], np.int32),
    }
    if isinstance(state, SequenceState | PrioritizedSequenceState):
        extras = jax.tree.map(lambda leaf: _divide(leaf, devices), state.start_extras)
        shared["start_extras"] = extras
    if isinstance(state, SequenceState):
        return SequenceState(**shared)
    if isinstance(state, PrioritizedState | PrioritizedSequenceState):
        return type(state)(**shared, **_divide_priorities(state, devices, stride))
    return UniformState(**shared, **_divide_starts(state, devices))


def _divide(leaf: np.ndarray, devices: int) -> np.ndarray:
    """Return [D, T, E, ...] as [devices, T, D * E / devices, ...]."""
    old_devices, num_slots, envs_each = leaf.shape[:3]
    envs, rest = old_devices * envs_each, leaf.shape[3:]
    by_env = np.moveaxis(leaf, 0, 1).reshape(num_slots, devices, envs // devices, *rest)
    return np.ascontiguousarray(np.moveaxis(by_env, 1, 0))


def _divide_priorities(state: Any, devices: int, stride: int) -> dict[str, Any]:
    old_devices, num_slots, envs_each = state.storage.flags.shape
    starts = -(-num_slots // stride)
    num_leaves = starts * old_devices * envs_each // devices
    # Level 0 without its padding has one leaf for each flat index, start * E + env.
    leaves = state.tree.levels[0].reshape(old_devices, -1)[:, : starts * envs_each]
    leaves = leaves.reshape(old_devices, starts, envs_each)
    divided = _divide(leaves, devices).reshape(devices, num_leaves)
    trees = [tree_from_leaves(part, state.tree.levels[0].shape[2]) for part in divided]
    return {
        "tree": jax.tree.map(lambda *leaves: np.stack(leaves), *trees),
        "max_priority": np.full(devices, state.max_priority.max(), np.float32),
        # Indices drawn earlier are no longer used, so any valid generation is correct.
        "generation": np.full(
            devices, state.generation[0] % count_generations(num_leaves), np.int32
        ),
    }


def _divide_starts(state: Any, devices: int) -> dict[str, Any]:
    old_devices, num_slots, envs_each = state.storage.flags.shape
    per_device = old_devices * envs_each // devices
    slots, envs = _live_starts(state)
    starts = np.zeros((devices, state.starts.shape[1] // envs_each * per_device), np.int32)
    counts = np.zeros(devices, np.int32)
    # The queue must be in the order of eviction: oldest slot first.
    order = np.lexsort((envs, (slots - int(state.position[0])) % num_slots))
    slots, envs = slots[order], envs[order]
    for device in range(devices):
        local = envs // per_device == device
        flat = slots[local] * per_device + envs[local] % per_device
        starts[device, : flat.size], counts[device] = flat, flat.size
    return {"starts": starts, "tail": np.zeros(devices, np.int32), "count": counts}


def _live_starts(state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the slot and the environment (numbered over all devices) of every valid start."""
    envs_each = state.storage.flags.shape[2]
    slots, envs = [], []
    for device, (starts, tail, count) in enumerate(
        zip(state.starts, state.tail, state.count, strict=True)
    ):
        live = starts[(tail + np.arange(count)) % starts.size]
        slots.append(live // envs_each)
        envs.append(device * envs_each + live % envs_each)
    return np.concatenate(slots), np.concatenate(envs)
