"""What a replay takes, said before it is allocated."""

from __future__ import annotations

from typing import Any

import jax
import psutil

from jaxdqn.tree import tree_bytes
from jaxdqn.types import Replay, Row


def replay_bytes(replay: Replay, example_row: Row) -> int:
    """Return the bytes that the replay takes on one device, allocating nothing."""
    return tree_bytes(jax.eval_shape(replay.init, example_row))


def free_bytes(device: Any = None) -> int:
    """Return the bytes free on ``device``, or on the host where it does not say."""
    device = device or jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return int(psutil.virtual_memory().available)


def sharers(devices: int, device: Any = None) -> int:
    """Return how many of ``devices`` share the memory that is free on one.

    All do where ``free_bytes`` is the host's; else each has its own.
    """
    device = device or jax.local_devices()[0]
    return 1 if "bytes_limit" in (device.memory_stats() or {}) else devices


def check_memory(
    num_bytes: int,
    device: Any = None,
    *,
    devices: int = 1,
    what: str = "the replay takes",
) -> None:
    """Refuse a request above what is free.

    Args:
      num_bytes: on each device.
      device: the first of this process by default.
      devices: of this process that take as much each.
      what: takes them, for the complaint.

    Raises:
      ValueError: with the bytes asked for and the bytes free.
    """
    free, sharing = free_bytes(device), sharers(devices, device)
    if num_bytes * sharing <= free:
        return
    if sharing == 1:
        raise ValueError(
            f"replay_capacity: {what} {num_bytes:,} bytes on each device, "
            f"of which {free:,} are free; must be at most that"
        )
    raise ValueError(
        f"replay_capacity: {what} {num_bytes:,} bytes on each of {sharing} devices, which share "
        f"the host's memory, of which {free:,} are free; must be at most {free // sharing:,}"
    )
