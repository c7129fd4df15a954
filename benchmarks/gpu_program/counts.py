"""Launches of one iteration, counted from the thunks of a chunk."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from benchmarks.gpu_program.thunks import Thunk

_GROUPS = ("kSequential", "kDynamicSliceFusion", "kDynamicSlice", "kConditional")
_UPDATES = ("kDynamicSliceFusion", "kDynamicSlice")
"""Copies whose address depends on the loop index, so their graph is updated in each pass."""
_NO_LAUNCH = ("kAsyncDone", "kWaitForStreams", "kEventWait", "kEventRecord")

CARRY = "carry"
"""Part for copies of loop carries, which the compiler inserts without a name."""
REST = "rest"
"""Part for kernels outside any named region."""


TOTALS = ("kernels", "copies", "graphs", "eager", "updates", "syncs")
"""The fields of ``Counts`` that are totals of an iteration."""


class Loop(NamedTuple):
    """A loop within an iteration."""

    part: str
    trip_count: int | None
    kernels: int
    """Kernels of one pass"""


class Counts(NamedTuple):
    """Launches of one iteration."""

    kernels: int
    """Kernels, library calls and copies."""
    copies: int
    """Number of ``kernels`` that are copies."""
    graphs: int
    """Launches of CUDA graphs."""
    eager: int
    """Number of ``kernels`` outside graphs, which are launched one by one."""
    updates: int
    """Copies to or from an address that changes in each pass, which require a graph update."""
    syncs: int
    """Loops of unknown length, and conditionals, outside graphs: the host waits for the device."""
    parts: dict[str, int]
    """``kernels`` by named region of the code."""
    loops: list[Loop]
    """Loops within the iteration."""


def count_iteration(root: Thunk, iterations: int, regions: tuple[str, ...]) -> Counts:
    """Count the launches of one pass of the loop over iterations.

    Args:
        root: thunks of a chunk.
        iterations: trip count of its loop; no other loop may have the same count.
        regions: names of the named regions of the code, ``jax.named_scope``.

    Raises:
        ValueError: if no loop has this trip count.
    """
    loops = [(thunk, in_graph) for thunk, in_graph in _loops(root) if
             thunk.trip_count == iterations]  # fmt: skip
    if not loops:
        raise ValueError(f"iterations={iterations}: must be the passes of a loop of the program")
    loop, in_graph = max(loops, key=lambda found: found[0].size)
    tally = _Tally(regions)
    tally.add(loop.parts["body"], 1, in_graph, _part(loop, regions))
    totals = {name: tally.totals[name] for name in TOTALS}
    return Counts(**totals, parts=dict(tally.parts), loops=tally.loops)


def describe(counts: Counts) -> dict[str, Any]:
    """Return the counts as plain values."""
    return {**counts._asdict(), "loops": [loop._asdict() for loop in counts.loops]}


def _loops(thunk: Thunk, in_graph: bool = False) -> list[tuple[Thunk, bool]]:
    found = [(thunk, in_graph)] if thunk.kind == "kWhile" else []
    in_graph = in_graph or thunk.kind == "kCommandBuffer"
    return found + [loop for inner in thunk.inner for loop in _loops(inner, in_graph)]


class _Tally:
    """Running totals of launches over thunks."""

    def __init__(self, regions: tuple[str, ...]) -> None:
        self.regions = regions
        self.totals = Counter[str]()
        self.parts = Counter[str]()
        self.loops: list[Loop] = []

    def add(self, thunks: list[Thunk], times: int, in_graph: bool, around: str) -> None:
        """Add ``times`` executions of thunks that are within the part ``around``."""
        for thunk in thunks:
            if thunk.kind == "kWhile":
                self._add_loop(thunk, times, in_graph, around)
            elif thunk.kind == "kCommandBuffer":
                self.totals["graphs"] += times
                self.add(thunk.inner, times, True, around)
            elif thunk.kind in _GROUPS:
                self.totals["updates"] += times * (in_graph and thunk.kind in _UPDATES)
                self.totals["syncs"] += times * (not in_graph and thunk.kind == "kConditional")
                self.add(thunk.inner, times, in_graph, around)
            elif thunk.kind not in _NO_LAUNCH:
                self._add_kernel(thunk, times, in_graph, around)

    def _add_kernel(self, thunk: Thunk, times: int, in_graph: bool, around: str) -> None:
        is_copy = thunk.kind == "kCopy"
        self.totals["kernels"] += times
        self.totals["copies"] += times * is_copy
        self.totals["eager"] += times * (not in_graph)
        part = _part(thunk, self.regions) or around or REST
        self.parts[CARRY if is_copy and not thunk.op_name else part] += times

    def _add_loop(self, loop: Thunk, times: int, in_graph: bool, around: str) -> None:
        known, passes = loop.trip_count is not None, loop.trip_count or 1
        run = list(loop.parts["body"])
        if in_graph or not known:  # otherwise the host counts the passes
            run += loop.parts["condition"]
        around = _part(loop, self.regions) or around or _most_frequent(run, self.regions)
        before, place = self.totals["kernels"], len(self.loops)
        self.add(run, times * passes, in_graph, around)
        self.totals["syncs"] += times * (not in_graph and not known)
        of_pass = (self.totals["kernels"] - before) // (times * passes)
        self.loops.insert(place, Loop(around, loop.trip_count, of_pass))


def _most_frequent(thunks: list[Thunk], regions: tuple[str, ...]) -> str:
    """Return the part with the most kernels in a loop that has no named region itself."""
    tally = _Tally(regions)
    tally.add([thunk for thunk in thunks if thunk.kind != "kWhile"], 1, True, "")
    named = {part: count for part, count in tally.parts.items() if part not in (CARRY, REST)}
    return max(named, key=lambda part: named[part], default=REST)


def _part(thunk: Thunk, regions: tuple[str, ...]) -> str:
    """Return the innermost named region of a thunk; empty without a region."""
    scopes = thunk.op_name.replace("(", "/").replace(")", "/").split("/")
    return next((scope for scope in reversed(scopes) if scope in regions), "")
