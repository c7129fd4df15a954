"""What devices send each other: predicted from a configuration, read from a compiled program."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from jaxdqn.communication.compression import Layout, layout, top_k_count
from jaxdqn.config.config import Config

_FLOAT = 4
_MOMENTS = {"adam": 2, "radam": 2, "rmsprop": 1}
"""Floats of optimiser state for each parameter."""


class CommunicationBytes(NamedTuple):
    """Bytes that each device sends for one gradient step, on average."""

    gradients: float
    parameters: float
    """Of online and, with Polyak steps, target network."""
    moments: float

    @property
    def total(self) -> float:
        return self.gradients + self.parameters + self.moments


class Collective(NamedTuple):
    """One collective of a compiled program, or its arrays of one type."""

    op: str
    """``all-reduce``, ``all-gather``, ``all-to-all``, ``reduce-scatter`` or
    ``collective-permute``."""
    dtype: str
    """As HLO writes it: ``f32``, ``s8``, ``u16`` ..."""
    elements: int
    """Of the result on one device."""
    group: int
    """Devices that take part together."""
    sent: float
    """Bytes that each device sends, by a ring."""


def bytes_per_gradient_step(config: Config, num_params: int) -> CommunicationBytes:
    """Return what each replica sends for the learning of a configuration.

    Counted as in ring algorithms (Patarasuk and Yuan 2009), which send least: of n
    bytes in each of D devices an all-reduce sends 2 n (D-1)/D, an all-to-all
    n (D-1)/D, an all-gather n (D-1). Left out are single numbers: one float for
    each step under the guard, one with prioritised replay (the greatest weight), one for each
    iteration of PQN (the share of valid rows), some
    words (a distance and counts) for each averaging, the metrics of a chunk.

    Args:
      num_params: parameters of the network, float32.
    """
    devices = config.replicas
    if devices == 1:
        return CommunicationBytes(0.0, 0.0, 0.0)
    plain = _mean_bytes(_FLOAT * num_params, devices, deterministic=config.deterministic)
    if config.average_every is not None:
        networks = 1 if config.target_tau is None else 2
        moments = _MOMENTS[config.optimizer] if config.average_moments else 0
        once = plain / config.average_every
        return CommunicationBytes(0.0, networks * once, moments * once)
    if config.compression == "none":
        return CommunicationBytes(plain, 0.0, 0.0)
    if config.compression == "top_k":
        packet = 2 * _FLOAT * top_k_count(config.top_k_fraction, num_params)
        return CommunicationBytes(float(packet * (devices - 1)), 0.0, 0.0)
    slice_bytes = _slice_bytes(config.compression, layout(config.compression, num_params, devices))
    # A slice to each of the others, and one's own share of the mean to each of them.
    return CommunicationBytes(float(2 * slice_bytes * (devices - 1)), 0.0, 0.0)


def collectives_in(hlo: str) -> list[Collective]:
    """Return the collectives in the text of a compiled program, in its order.

    Each is counted once, as often as it stands there: compile what runs once, a
    single gradient step, and not a loop of many.

    Args:
      hlo: ``jax.jit(function).lower(...).compile().as_text()``.

    Raises:
      ValueError: if a collective names neither its groups nor, in the program's
        first line, the number of all devices.
    """
    header = re.findall(r"(?:num_partitions|replica_count)=(\d+)", hlo.partition("\n")[0])
    everyone = math.prod(map(int, header)) if header else None
    found = []
    for match in _INSTRUCTION.finditer(hlo):
        shape, op, start, rest = match.group("shape", "op", "start", "rest")
        group = _group_size(op, rest, everyone)
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
"""Bytes sent, of the bytes of the result and the devices in a group."""
_INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.-]+ = (?P<shape>\(.*?\)|\S+) (?P<op>{'|'.join(_SENT)})(?P<start>-start)?"
    r"\((?P<rest>.*)$",
    re.MULTILINE,
)
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


def _mean_bytes(size: int, devices: int, *, deterministic: bool) -> float:
    """Return what a mean of ``size`` bytes sends; gathered whole if it is deterministic."""
    if deterministic:
        return float(size * (devices - 1))
    return 2 * size * (devices - 1) / devices


def _slice_bytes(kind: str, shape: Layout) -> int:
    if kind == "bfloat16":
        return 2 * shape.blocks * shape.block
    return shape.blocks * (shape.block + _FLOAT)


def _group_size(op: str, rest: str, everyone: int | None) -> int:
    """Return how many devices take part, from what follows the operation's name."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        return len(set(re.findall(r"\d+", pairs.group(1))))
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(groups.group(1))
    if groups := re.search(r"replica_groups=\{\{(.*?)\}\}", rest):
        return max(len(group.split(",")) for group in groups.group(1).split("},{"))
    if everyone is None:
        raise ValueError(f"hlo={op!r}: must name the devices that take part, or how many there are")
    return everyone


def _result(shape: str, op: str, *, started: bool) -> str:
    """Return the shape of the result alone, where an operation that starts shows its input too."""
    if not started or op == "all-reduce":
        return shape
    return _parts(shape)[1]


def _parts(shape: str) -> list[str]:
    """Return the parts of a tuple's shape."""
    parts, depth = [""], 0
    for character in shape.strip()[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _elements(shape: str) -> dict[str, int]:
    """Return the elements of each type in an array's shape or a tuple's."""
    totals: dict[str, int] = {}
    for dtype, dimensions in _ARRAY.findall(shape):
        count = math.prod(int(length) for length in dimensions.split(",") if length)
        totals[dtype] = totals.get(dtype, 0) + count
    return totals


def _item_bytes(dtype: str) -> float:
    bits = re.search(r"\d+", dtype)
    return 1.0 if bits is None else int(bits.group()) / 8  # pred is a byte
