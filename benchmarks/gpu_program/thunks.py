"""Thunks of a compiled GPU program, parsed from the dumps of XLA.

A *thunk* is one step of XLA's GPU runtime: a kernel, a copy, a library call, a CUDA graph ("command
buffer"), or a loop. The dump lists them as a tree by indentation::

    004: kWhile [prev=003 (1) | next=000 (1)]
    condition:
        005: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1] ...
      body:
        000: kCommandBuffer [source | sink]
            006: kCopy [source | sink] kCopy
"""

from __future__ import annotations

import dataclasses
import re

_THUNK = re.compile(r"(\d+): (k\w+)")
_METADATA = re.compile(r'profile_annotation: "([^"]*)"\s*\n\s*thunk_id: (\d+)')
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", re.M)
_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass
class Thunk:
    """Thunk and its nested thunks."""

    kind: str
    name: str = ""
    """Name of the HLO instruction; empty if there is none."""
    op_name: str = ""
    """Name of the JAX operation with its named scopes; empty if the compiler inserted it."""
    trip_count: int | None = None
    """Trip count of a loop; None if it is unknown, or if the thunk is not a loop."""
    parts: dict[str, list[Thunk]] = dataclasses.field(default_factory=dict)
    """Nested thunks: under ``body`` and ``condition`` for a loop, under "" for others."""

    @property
    def inner(self) -> list[Thunk]:
        """All thunks directly within this one."""
        return [thunk for part in self.parts.values() for thunk in part]

    @property
    def size(self) -> int:
        """Number of thunks within this one, at all depths."""
        return sum(1 + thunk.size for thunk in self.inner)


def parse_thunks(sequence: str, metadata: str, hlo: str) -> Thunk:
    """Return the tree of thunks, under a root.

    Args:
        sequence: ``thunk_sequence_after_thunk_passes.txt``
        metadata: ``thunk_metadata.txt``, the instruction of each thunk.
        hlo: the optimised module.

    Raises:
        ValueError: if the sequence has no thunk.
    """
    names = {int(index): name for name, index in _METADATA.findall(metadata)}
    instructions = {name: text for name, text in _INSTRUCTION.findall(hlo)}
    root = Thunk("root")
    stack = [(-1, root, "")]
    for line in filter(str.strip, sequence.splitlines()):
        indent, text = len(line) - len(line.lstrip()), line.strip()
        match = _THUNK.match(text)
        if match is None:
            # The label of a condition follows its loop, at the left edge. The label of a body is
            # indented by two columns relative to its loop.
            while text != "condition:" and stack[-1][0] > indent:
                stack.pop()
            above, owner, _ = stack.pop()
            stack.append((above, owner, text.rstrip(":")))
            continue
        while stack[-1][0] >= indent:
            stack.pop()
        thunk = _thunk(match[2], names.get(int(match[1]), ""), instructions)
        _, owner, part = stack[-1]
        owner.parts.setdefault(part, []).append(thunk)
        stack.append((indent, thunk, ""))
    if not root.parts:
        raise ValueError("sequence: must have at least one thunk; XLA's format has changed")
    return root


def _thunk(kind: str, name: str, instructions: dict[str, str]) -> Thunk:
    text = instructions.get(name, "")
    op_name, trips = _OP_NAME.search(text), _TRIP_COUNT.search(text)
    return Thunk(
        kind=kind,
        name=name,
        op_name=op_name[1] if op_name else "",
        trip_count=int(trips[1]) if trips and kind == "kWhile" else None,
    )
