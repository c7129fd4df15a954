"""Communication volume, predicted from a configuration or read from a compiled program."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxdqn.communication.compression import Layout, layout, top_k_count
from jaxdqn.communication.powersgd import powersgd_floats
from jaxdqn.config.config import Config

_FLOAT = 4
_MOMENTS = {"adam": 2, "radam": 2, "rmsprop": 1}
"""Number of floats of optimiser state per parameter; RMSProp without ``rmsprop_centered``."""


class CommunicationBytes(NamedTuple):
    """Bytes that each replica sends for one gradient step, on average."""

    gradients: float
    parameters: float
    """Bytes for the parameters of the online network and, with Polyak averaging, of the target
    network."""
    moments: float

    @property
    def total(self) -> float:
        return self.gradients + self.parameters + self.moments


class Collective(NamedTuple):
    """Collective of a compiled program. A collective of several dtypes gives several entries."""

    op: str
    """``all-reduce``, ``all-gather``, ``all-to-all``, ``reduce-scatter`` or
    ``collective-permute``."""
    dtype: str
    """Element type in the notation of HLO: ``f32``, ``s8``, ``u16`` ..."""
    elements: int
    """Number of elements of the result on one device."""
    group: int
    """Number of devices in each group of the collective."""
    sent: float
    """Bytes that each device sends with a ring algorithm."""


def bytes_per_gradient_step(
    config: Config, num_params: int, shapes: Sequence[tuple[int, ...]] = ()
) -> CommunicationBytes:
    """Return the bytes that each replica sends for one gradient step of a configuration.

    The formulas are those of ring algorithms (Patarasuk and Yuan 2009), which send the fewest
    bytes. With n bytes on each of D replicas, an all-reduce sends 2 n (D-1)/D, an all-to-all
    n (D-1)/D, and an all-gather n (D-1). Not counted are scalars: one float per step with the
    guard, one with prioritised replay (the largest weight), one per iteration of PQN (the fraction
    of valid rows), a few words per averaging (a distance and counts), and the metrics of a chunk;
    nor are diagnostics and the statistics of normalised observations.

    Args:
      config: configuration of the run.
      num_params: number of float32 parameters of the network.
      shapes: shapes of these parameters; needed for PowerSGD's messages and Muon's moments.

    Raises:
      ValueError: if the shapes are needed and do not have ``num_params`` elements.
    """
    devices = config.replicas
    if devices == 1:
        return CommunicationBytes(0.0, 0.0, 0.0)
    plain = _mean_bytes(_FLOAT * num_params, devices, deterministic=config.deterministic)
    if config.average_every is not None:
        networks = 1 if config.target_tau is None else 2
        per_step = plain / config.average_every
        moments = _moments(config, num_params, shapes) if config.average_moments else 0.0
        return CommunicationBytes(0.0, networks * per_step, moments * per_step)
    if config.compression == "none":
        return CommunicationBytes(plain, 0.0, 0.0)
    if config.compression == "top_k":
        packet = 2 * _FLOAT * top_k_count(config.top_k_fraction, num_params)
        return CommunicationBytes(float(packet * (devices - 1)), 0.0, 0.0)
    if config.compression == "powersgd":
        _check_shapes(shapes, num_params)
        floats = powersgd_floats(shapes, config.powersgd_rank)
        sent = _mean_bytes(_FLOAT * floats, devices, deterministic=config.deterministic)
        return CommunicationBytes(sent, 0.0, 0.0)
    slice_bytes = _slice_bytes(config.compression, layout(config.compression, num_params, devices))
    # The all-to-all sends one slice to each other device. The all-gather sends this device's slice
    # of the mean to each of them.
    return CommunicationBytes(float(2 * slice_bytes * (devices - 1)), 0.0, 0.0)


def collectives_in(hlo: str) -> list[Collective]:
    """Return the collectives in the text of a compiled program, in order of appearance.

    A collective inside a loop is counted once, so compile a single gradient step, not a loop.

    Args:
      hlo: ``jax.jit(function).lower(...).compile().as_text()``.

    Raises:
      ValueError: if a collective does not name its groups and the first line of the program does
        not state the number of devices.
    """
    header = re.findall(r"(?:num_partitions|replica_count)=(\d+)", hlo.partition("\n")[0])
    num_devices = math.prod(map(int, header)) if header else None
    found = []
    for match in _INSTRUCTION.finditer(hlo):
        shape, op, start, rest = match.group("shape", "op", "start", "rest")
        group = _group_size(op, rest, num_devices)
        for dtype, elements in _elements(_result(shape, op, started=bool(start))).items():
            size = elements * _item_bytes(dtype)
            found.append(Collective(op, dtype, elements, group, _SENT[op](size, group)))
    return found


_SENT: dict[str, Callable[[float, int], float]] = {
    "all-reduce": lambda size, group: 2 * size * (group - 1) / group,
    "all-gather": lambda size, group: size * (group - 1) / group,
    "all-to-all": lambda size, group: size * (group - 1) / group,
    "reduce-scatter": lambda size, group: size * (group - 1),
    "collective-permute": lambda size, group: size,
}
"""Bytes that a device sends, from the result's bytes and the number of devices in a group."""
_INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.-]+ = (?P<shape>\(.*?\)|\S+) (?P<op>{'|'.join(_SENT)})(?P<start>-start)?"
    r"\((?P<rest>.*)$",
    re.MULTILINE,
)
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


def _moments(config: Config, num_params: int, shapes: Sequence[tuple[int, ...]]) -> float:
    """Return the mean number of floats of optimiser state per parameter."""
    if config.optimizer != "muon":
        return _MOMENTS[config.optimizer] + config.rmsprop_centered
    # Muon stores one momentum for a matrix, and Adam's two moments for any other tensor.
    _check_shapes(shapes, num_params)
    return sum(math.prod(shape) * (1 if len(shape) == 2 else 2) for shape in shapes) / num_params


def _check_shapes(shapes: Sequence[tuple[int, ...]], num_params: int) -> None:
    if sum(map(math.prod, shapes)) != num_params:
        raise ValueError(f"shapes={shapes}: must have num_params={num_params} elements")


def _mean_bytes(size: int, devices: int, *, deterministic: bool) -> float:
    """Return the bytes sent for a mean of ``size`` bytes; a deterministic mean is an all-gather."""
    if deterministic:
        return float(size * (devices - 1))
    return 2 * size * (devices - 1) / devices


def _slice_bytes(kind: str, shape: Layout) -> int:
    if kind == "bfloat16":
        return 2 * shape.blocks * shape.block
    return shape.blocks * (shape.block + _FLOAT)


def _group_size(op: str, rest: str, num_devices: int | None) -> int:
    """Return the number of devices in a group, from the text after the operation's name."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        return len(set(re.findall(r"\d+", pairs.group(1))))
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(groups.group(1))
    if groups := re.search(r"replica_groups=\{\{(.*?)\}\}", rest):
        return max(len(group.split(",")) for group in groups.group(1).split("},{"))
    if num_devices is None:
        raise ValueError(f"hlo={op!r}: must name the devices that take part, or how many there are")
    return num_devices


def _result(shape: str, op: str, *, started: bool) -> str:
    """Return the shape of the result, without the input that an async start also lists."""
    if not started or op == "all-reduce":
        return shape
    return _parts(shape)[1]


def _parts(shape: str) -> list[str]:
    """Split the shape of a tuple into the shapes of its parts."""
    parts, depth = [""], 0
    for character in shape.strip()[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _elements(shape: str) -> dict[str, int]:
    """Return the number of elements of each dtype in the shape of an array or a tuple."""
    totals: dict[str, int] = {}
    for dtype, dimensions in _ARRAY.findall(shape):
        count = math.prod(int(length) for length in dimensions.split(",") if length)
        totals[dtype] = totals.get(dtype, 0) + count
    return totals


def _item_bytes(dtype: str) -> float:
    bits = re.search(r"\d+", dtype)
    return 1.0 if bits is None else int(bits.group()) / 8  # pred is a byte
