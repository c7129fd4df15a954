"""Many processes as one: what they agree on, and how arrays pass between them and the host.

Every process runs the same program; ``jax.distributed`` joins their devices into one list. The
process of index 0 is the coordinator: it alone reads and writes files. Decisions of the host are
the coordinator's, so all processes call every function here in the same order. With one process
each function is the identity, or simply calls its argument.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdqn.types import PyTree

_HEAD = 1024
"""Bytes in which a short text passes at once."""

_PIECE = 2**26
"""Bytes sent at once: what a transfer takes of each device's memory, twice."""


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 10,
    initialization_seconds: int = 30,
) -> None:
    """Join the processes of a run; call before JAX computes anything.

    Args:
      coordinator: HOST:PORT of process 0; with none of the first three JAX finds the cluster
        (Slurm, Kubernetes, Cloud TPU).
      num_processes: how many there are.
      process_id: which this is.
      heartbeat_seconds: after so long a process that does not answer ends the others.
      initialization_seconds: how long to wait for all.

    Raises:
      ValueError: if JAX finds no cluster.
    """
    # For CPU devices; without it their processes cannot speak.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # SIGTERM is for the run to handle.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # Named by hand it is not looked for, and all devices of the host are used.
            cluster_detection_method=None if coordinator is None else "deactivate",
            heartbeat_timeout_seconds=heartbeat_seconds,
            # The runtime waits five seconds longer than it is told.
            initialization_timeout=max(1, initialization_seconds - 5),
        )
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        if coordinator is not None:
            raise
        raise ValueError(
            f"multi_host=True: must run in a cluster that JAX knows; it says: {error} Give "
            "coordinator, num_processes and process_id instead"
        ) from error


def check_even() -> None:
    """Refuse processes with different numbers of devices; nothing passes between them before.

    Raises:
      ValueError: on every process, saying how many each has.
    """
    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(process) for process in range(jax.process_count())]
    if len(set(counts)) > 1:
        each = ", ".join(f"{count} in process {index}" for index, count in enumerate(counts))
        raise ValueError(
            f"devices={len(owners)}: must be as many in each process, but there are {each}; "
            f"this is {describe_process()}"
        )


def host_names() -> list[str]:
    """Return the host of each process.

    Raises:
      ValueError: as ``check_even``.
    """
    if jax.process_count() == 1:
        return [platform.node()]
    check_even()
    mine = np.zeros(256, np.uint8)
    name = platform.node().encode()[: mine.size]
    mine[: len(name)] = np.frombuffer(name, np.uint8)
    each = multihost_utils.process_allgather(mine)
    return [row.tobytes().rstrip(b"\0").decode() for row in each]


def is_coordinator() -> bool:
    """Say whether this process is the one that reads and writes files."""
    return jax.process_index() == 0


def broadcast(make: Callable[[], Any]) -> Any:
    """Return on every process what ``make()`` returns on process 0, where alone it is called.

    Args:
      make: gives None or what JSON can hold.

    Raises:
      ValueError, OSError: on every process, if ``make`` raises it.
    """
    if jax.process_count() == 1:
        return make()
    said: dict[str, Any] = {}
    failure: Exception | None = None
    if is_coordinator():
        try:
            said = {"value": make()}
        except ValueError as error:
            failure, said = error, {"refused": str(error)}
        except OSError as error:
            failure, said = error, {"failed": [error.errno, error.strerror, str(error.filename)]}
    said = json.loads(_text_from_lead(json.dumps(said)))
    if failure is not None:
        raise failure
    if "refused" in said:
        raise ValueError(said["refused"])
    if "failed" in said:
        raise OSError(*said["failed"])
    return said["value"]


def agree(tree: PyTree) -> PyTree:
    """Return process 0's leaves, as NumPy arrays, on every process; the same shapes on each."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(_agree, tree)


def first_reason(reason: str | None) -> str | None:
    """Return the reason of the first process that has one, on every process."""
    if jax.process_count() == 1:
        return reason
    any_has = multihost_utils.process_allgather(np.int32(reason is not None))
    if not np.any(any_has):
        return None
    index = int(np.argmax(any_has))
    said = np.zeros(64, np.uint8)
    if jax.process_index() == index:
        text = str(reason).encode()[: said.size]
        said[: len(text)] = np.frombuffer(text, np.uint8)
    _send(index, [said.size], [said])
    return said.tobytes().rstrip(b"\0").decode()


def check_same(values: dict[str, Any]) -> None:
    """Refuse to train where a process was given something else than process 0.

    Raises:
      ValueError: on that process, naming the value.
    """
    wanted = broadcast(lambda: {"values": values, "host": platform.node()})
    for name, value in json.loads(json.dumps(values)).items():
        if value != wanted["values"].get(name):
            raise ValueError(
                f"{name}={value!r}: must be {wanted['values'].get(name)!r}, as in process 0 on "
                f"{wanted['host']}; this is {describe_process()}"
            )


def describe_process() -> str:
    """Return which process this is and where, for messages."""
    return f"process {jax.process_index()} of {jax.process_count()}, on {platform.node()}"


def local_part(tree: PyTree) -> PyTree:
    """Return each leaf, or where other processes hold some of it, the shards held here.

    Those stand one after the other along the first axis; keys become their words.
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


def gather(tree: PyTree) -> PyTree | None:
    """Gather the leaves of sharded arrays as NumPy arrays on process 0; None on the others.

    They pass in pieces of 64 MiB, so that no device ever holds more than its own share and two
    such pieces. Process 0's host must have room for the whole.
    """
    leaves, structure = jax.tree.flatten(tree)
    whole = [np.empty(leaf.shape, leaf.dtype) for leaf in leaves] if is_coordinator() else []
    for owner in range(jax.process_count()):
        indices = [_indices(leaf.sharding, leaf.shape, owner) for leaf in leaves]
        blocks = None
        if owner == jax.process_index():
            blocks = [_held(leaf, each) for leaf, each in zip(leaves, indices, strict=True)]
        elif is_coordinator():
            blocks = [_room(leaf, each) for leaf, each in zip(leaves, indices, strict=True)]
        if owner != 0:
            _send_blocks(owner, leaves, indices, blocks)
        if is_coordinator():
            assert blocks is not None
            for target, each, values in zip(whole, indices, blocks, strict=True):
                for index, value in zip(each, values, strict=True):
                    target[index] = value
    return jax.tree.unflatten(structure, whole) if is_coordinator() else None


def broadcast_sharded(tree: PyTree, shardings: PyTree) -> PyTree:
    """Make sharded arrays of NumPy arrays that process 0 holds; they pass as in ``gather``.

    Args:
      tree: on process 0 NumPy leaves, on the others anything with their shapes and dtypes.
      shardings: of each leaf.
    """
    leaves, structure = jax.tree.flatten(tree)
    layouts = jax.tree.leaves(shardings)
    mine: list[dict[Any, Any]] = []
    for taker in range(jax.process_count()):
        indices = [
            _indices(layout, leaf.shape, taker)
            for leaf, layout in zip(leaves, layouts, strict=True)
        ]
        blocks = None
        if is_coordinator():
            blocks = [
                [np.asarray(leaf[index], order="C") for index in each]
                for leaf, each in zip(leaves, indices, strict=True)
            ]
        elif taker == jax.process_index():
            blocks = [_room(leaf, each) for leaf, each in zip(leaves, indices, strict=True)]
        if taker != 0:
            _send_blocks(0, leaves, indices, blocks)
        if taker == jax.process_index():
            assert blocks is not None
            mine = [
                {_key(index): value for index, value in zip(each, values, strict=True)}
                for each, values in zip(indices, blocks, strict=True)
            ]

    def made(leaf: Any, layout: Any, held: dict[Any, Any]) -> jax.Array:
        return jax.make_array_from_callback(
            leaf.shape, layout, lambda index: held[_key(index or ())], dtype=leaf.dtype
        )

    return jax.tree.unflatten(structure, map(made, leaves, layouts, mine))


def _agree(leaf: Any) -> np.ndarray:
    # As bytes: the sum by which JAX sends floats would turn -0.0 into 0.0.
    block = np.array(leaf)
    _send(0, [block.nbytes], [_bytes(block)])
    return block


def _text_from_lead(text: str) -> str:
    """Return process 0's text on every process: at once if it is short, else after its head."""
    data = text.encode()
    head = np.zeros(_HEAD, np.uint8)
    head[:8] = np.frombuffer(np.int64(len(data)).tobytes(), np.uint8)
    start = np.frombuffer(data[: _HEAD - 8], np.uint8)
    head[8 : 8 + start.size] = start
    _send(0, [_HEAD], [head])
    length = int(head[:8].view(np.int64)[0])
    if length <= _HEAD - 8:
        return head[8 : 8 + length].tobytes().decode()
    whole = np.frombuffer(data, np.uint8) if is_coordinator() else np.empty(length, np.uint8)
    _send(0, [length], [whole])
    return whole.tobytes().decode()


_Index = tuple[slice, ...]


def _send_blocks(
    owner: int,
    leaves: Sequence[Any],
    indices: Sequence[Sequence[_Index]],
    blocks: Sequence[Sequence[np.ndarray]] | None,
) -> None:
    """Send parts of leaves from their owner; ``blocks`` is None where they are not wanted."""
    sizes = [
        math.prod(_extent(index, leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf, each in zip(leaves, indices, strict=True)
        for index in each
    ]
    views = None if blocks is None else [_bytes(block) for each in blocks for block in each]
    _send(owner, sizes, views)


def _send(owner: int, sizes: Sequence[int], blocks: Sequence[np.ndarray] | None) -> None:
    """Write the owner's blocks, [bytes] uint8, into those of the others that have any."""
    owns = jax.process_index() == owner
    for start in range(0, sum(sizes), _PIECE):
        stop = min(start + _PIECE, sum(sizes))
        # Few sizes, for each is compiled.
        piece = np.zeros(2 ** max(10, (stop - start - 1).bit_length()), np.uint8)
        parts = list(_overlaps(sizes, start, stop))
        if owns:
            assert blocks is not None
            for number, part, place in parts:
                piece[place] = blocks[number][part]
        piece = multihost_utils.broadcast_one_to_all(piece, is_source=owns)
        if blocks is not None and not owns:
            for number, part, place in parts:
                blocks[number][part] = piece[place]


def _overlaps(sizes: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
    """Give, of blocks that follow each other, those in [start, stop): number, part, place."""
    begin = 0
    for number, size in enumerate(sizes):
        first, last = max(begin, start), min(begin + size, stop)
        if first < last:
            yield number, slice(first - begin, last - begin), slice(first - start, last - start)
        begin += size


def _bytes(block: np.ndarray) -> np.ndarray:
    """Return a contiguous array's memory, [bytes] uint8."""
    return block.reshape(-1).view(np.uint8)


def _indices(sharding: Any, shape: tuple[int, ...], process: int) -> list[_Index]:
    """Return the distinct parts of an array that a process's devices hold."""
    parts = {
        _key(index): index
        for device, index in sharding.devices_indices_map(shape).items()
        if device.process_index == process
    }
    return list(parts.values())


def _held(leaf: jax.Array, indices: list[_Index]) -> list[np.ndarray]:
    data = {_key(shard.index or ()): shard.data for shard in leaf.addressable_shards}
    return [np.asarray(data[_key(index)], order="C") for index in indices]


def _room(leaf: Any, indices: list[_Index]) -> list[np.ndarray]:
    return [np.empty(_extent(index, leaf.shape), leaf.dtype) for index in indices]


def _extent(index: _Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    parts = zip(index, shape, strict=True)
    return tuple(len(range(*part.indices(size))) for part, size in parts)


def _key(index: _Index) -> tuple[tuple[int | None, int | None], ...]:
    return tuple((part.start, part.stop) for part in index)
