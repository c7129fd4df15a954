"""Several processes that run one program: joining, shared decisions and host data.

Every process runs the same program; ``jax.distributed`` joins their devices into one list. The
process with index 0 is the coordinator: it alone reads and writes files and makes the decisions on
the host. Most functions here communicate, so all processes must call them in the same order. A
single process does not communicate.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdqn.types import PyTree

_HEAD_BYTES = 1024
"""Size of the first message of a broadcast text; a short text fits into it."""

_PIECE_BYTES = 2**26
"""Size of one transfer, 64 MiB. A transfer needs twice its size in the memory of each device."""


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 10,
    initialization_seconds: int = 30,
) -> None:
    """Connect the processes of a run; call it before JAX computes anything.

    Args:
      coordinator: HOST:PORT of process 0. If the first three arguments are None, JAX detects the
        cluster (Slurm, Kubernetes, Cloud TPU).
      num_processes: number of processes.
      process_id: index of this process.
      heartbeat_seconds: a process that does not answer for this time counts as failed, and the
        others exit.
      initialization_seconds: maximum time to wait for all processes, effectively at least 6.

    Raises:
      ValueError: if JAX finds no cluster.
    """
    # CPU devices of different processes need gloo to communicate.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The run itself handles SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # With an explicit coordinator no cluster is detected: each process uses all
            # devices of its host.
            cluster_detection_method=None if coordinator is None else "deactivate",
            heartbeat_timeout_seconds=heartbeat_seconds,
            # The runtime adds five seconds to this value.
            initialization_timeout=max(1, initialization_seconds - 5),
        )
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        if coordinator is not None:
            raise
        raise ValueError(
            f"multi_host=True: must run in a cluster that JAX detects; JAX reports: {error} Give "
            "coordinator, num_processes and process_id instead"
        ) from error


def check_even() -> None:
    """Check that all processes have the same number of devices. Does not communicate.

    Raises:
      ValueError: on every process, if the numbers differ.
    """
    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(process) for process in range(jax.process_count())]
    if len(set(counts)) > 1:
        each = ", ".join(f"{count} in process {index}" for index, count in enumerate(counts))
        raise ValueError(
            f"devices={len(owners)}: must be equal in all processes, but there are {each}; "
            f"this is {describe_process()}"
        )


def host_names() -> list[str]:
    """Return the host name of each process, in order of their indices.

    Raises:
      ValueError: as ``check_even``.
    """
    if jax.process_count() == 1:
        return [platform.node()]
    check_even()
    buffer = np.zeros(256, np.uint8)
    name = platform.node().encode()[: buffer.size]
    buffer[: len(name)] = np.frombuffer(name, np.uint8)
    each = multihost_utils.process_allgather(buffer)
    return [row.tobytes().rstrip(b"\0").decode() for row in each]


def is_coordinator() -> bool:
    """Return whether this process is the coordinator, which reads and writes files."""
    return jax.process_index() == 0


def broadcast(make: Callable[[], Any]) -> Any:
    """Call ``make()`` on process 0 only and return its result on every process.

    Args:
      make: function that returns None or a value that JSON can represent.

    Raises:
      ValueError, OSError: on every process, if ``make`` raises it.
    """
    if jax.process_count() == 1:
        return make()
    message: dict[str, Any] = {}
    failure: Exception | None = None
    if is_coordinator():
        try:
            message = {"value": make()}
        except ValueError as error:
            failure, message = error, {"value_error": str(error)}
        except OSError as error:
            arguments = [error.errno, error.strerror, str(error.filename)]
            failure, message = error, {"os_error": arguments}
    message = json.loads(_broadcast_text(json.dumps(message)))
    if failure is not None:
        raise failure
    if "value_error" in message:
        raise ValueError(message["value_error"])
    if "os_error" in message:
        raise OSError(*message["os_error"])
    return message["value"]


def broadcast_arrays(tree: PyTree) -> PyTree:
    """Return the leaves of process 0 as NumPy arrays on every process; unchanged with one process.

    Args:
      tree: pytree whose leaves have the same shapes and dtypes on every process.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(_broadcast_array, tree)


def first_stop_reason(reason: str | None) -> str | None:
    """Return, on every process, the reason of the first process that has one; None if none has."""
    if jax.process_count() == 1:
        return reason
    has_reason = multihost_utils.process_allgather(np.int32(reason is not None))
    if not np.any(has_reason):
        return None
    index = int(np.argmax(has_reason))
    buffer = np.zeros(64, np.uint8)
    if jax.process_index() == index:
        text = str(reason).encode()[: buffer.size]
        buffer[: len(text)] = np.frombuffer(text, np.uint8)
    send(index, [buffer.size], [buffer])
    return buffer.tobytes().rstrip(b"\0").decode()


def check_same(values: dict[str, Any]) -> None:
    """Check that this process was given the same values as process 0.

    Raises:
      ValueError: if a value differs; names the first such value.
    """
    wanted = broadcast(lambda: {"values": values, "host": platform.node()})
    for name, value in json.loads(json.dumps(values)).items():
        if value != wanted["values"].get(name):
            raise ValueError(
                f"{name}={value!r}: must be {wanted['values'].get(name)!r}, as in process 0 on "
                f"{wanted['host']}; this is {describe_process()}"
            )


def describe_process() -> str:
    """Describe this process by index and host, for error messages."""
    return f"process {jax.process_index()} of {jax.process_count()}, on {platform.node()}"


def local_part(tree: PyTree) -> PyTree:
    """Return the part of each leaf that this process holds.

    A replicated leaf is replaced by one copy. Any other leaf that spans several processes is
    replaced by this process's shards, concatenated along the first axis, keys by their key data.
    """

    def part(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated:
            return leaf.addressable_shards[0].data
        shards = [shard.data for shard in leaf.addressable_shards]
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            shards = [jax.random.key_data(shard) for shard in shards]
        return np.concatenate([np.asarray(shard) for shard in shards])

    return jax.tree.map(part, tree)


def send(owner: int, sizes: Sequence[int], blocks: Sequence[np.ndarray] | None) -> None:
    """Broadcast the owner's blocks into the blocks of the other processes, in place.

    Args:
      owner: index of the sending process.
      sizes: bytes of each block, equal on all processes.
      blocks: blocks of shape [size] uint8, read on the owner and written on the others. None on a
        process that participates but needs no data.
    """
    owns = jax.process_index() == owner
    for start in range(0, sum(sizes), _PIECE_BYTES):
        stop = min(start + _PIECE_BYTES, sum(sizes))
        # JAX compiles one program for each size, so sizes are rounded up to powers of two.
        piece = np.zeros(2 ** max(10, (stop - start - 1).bit_length()), np.uint8)
        parts = list(_overlaps(sizes, start, stop))
        if owns:
            assert blocks is not None
            for number, in_block, in_piece in parts:
                piece[in_piece] = blocks[number][in_block]
        piece = multihost_utils.broadcast_one_to_all(piece, is_source=owns)
        if blocks is not None and not owns:
            for number, in_block, in_piece in parts:
                blocks[number][in_block] = piece[in_piece]


def as_bytes(block: np.ndarray) -> np.ndarray:
    """View a contiguous array as bytes, [bytes] uint8."""
    return block.reshape(-1).view(np.uint8)


def _broadcast_array(leaf: Any) -> np.ndarray:
    # Send bytes, because JAX broadcasts floats by a sum, which would turn -0.0 into 0.0.
    block = np.array(leaf)
    send(0, [block.nbytes], [as_bytes(block)])
    return block


def _broadcast_text(text: str) -> str:
    """Return the text of process 0 on every process.

    The first message contains the length and the start of the text. If the text does not fit, a
    second message contains all of it.
    """
    data = text.encode()
    head = np.zeros(_HEAD_BYTES, np.uint8)
    head[:8] = np.frombuffer(np.int64(len(data)).tobytes(), np.uint8)
    start = np.frombuffer(data[: _HEAD_BYTES - 8], np.uint8)
    head[8 : 8 + start.size] = start
    send(0, [_HEAD_BYTES], [head])
    length = int(head[:8].view(np.int64)[0])
    if length <= _HEAD_BYTES - 8:
        return head[8 : 8 + length].tobytes().decode()
    full = np.frombuffer(data, np.uint8) if is_coordinator() else np.empty(length, np.uint8)
    send(0, [length], [full])
    return full.tobytes().decode()


def _overlaps(sizes: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield the parts of consecutive blocks within the bytes [start, stop).

    Yields:
      Index of the block, slice of the block, slice of [start, stop).
    """
    begin = 0
    for number, size in enumerate(sizes):
        first, last = max(begin, start), min(begin + size, stop)
        if first < last:
            yield number, slice(first - begin, last - begin), slice(first - start, last - start)
        begin += size
