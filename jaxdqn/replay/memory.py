"""Memory of a replay, computed and checked before allocation."""

from __future__ import annotations

from typing import Any

import jax
import psutil

from jaxdqn.tree import tree_bytes
from jaxdqn.types import Replay, Row


def replay_bytes(replay: Replay, example_row: Row) -> int:
    """Return the bytes of the replay on one device, without allocating it."""
    return tree_bytes(jax.eval_shape(replay.init, example_row))


def free_bytes(device: Any = None) -> int:
    """Return the free bytes of ``device``, or of the host if the device reports no limit (CPU)."""
    device = device or jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return int(psutil.virtual_memory().available)


def devices_sharing_memory(devices: int, device: Any = None) -> int:
    """Return the number of ``devices`` that share the memory reported by ``free_bytes``.

    CPU devices all share the memory of the host. For devices that report their own memory the
    result is 1.
    """
    device = device or jax.local_devices()[0]
    return 1 if "bytes_limit" in (device.memory_stats() or {}) else devices


def check_memory(
    num_bytes: int,
    device: Any = None,
    *,
    devices: int = 1,
    what: str = "the replay takes",
    argument: str = "replay_capacity",
) -> None:
    """Reject an allocation that exceeds the free memory.

    Args:
      num_bytes: bytes on each device.
      device: device to check; by default the first device of this process.
      devices: number of devices of this process that each allocate ``num_bytes``.
      what: subject and verb of the error message.
      argument: option to name in the message.

    Raises:
      ValueError: if the memory is too small; states the requested and the free bytes.
    """
    free, sharing = free_bytes(device), devices_sharing_memory(devices, device)
    if num_bytes * sharing <= free:
        return
    if sharing == 1:
        raise ValueError(
            f"{argument}: {what} {num_bytes:,} bytes on each device, but only {free:,} are free; "
            "must be at most that"
        )
    raise ValueError(
        f"{argument}: {what} {num_bytes:,} bytes on each of {sharing} devices, which share "
        f"the host's memory, of which {free:,} are free; must be at most {free // sharing:,}"
    )
