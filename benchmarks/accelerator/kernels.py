"""Time of the kernels of an iteration by part, from a trace of ``jax.profiler``."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.accelerator.configs import kernel_configs
from benchmarks.accelerator.plan import Cell, Sizes, measured_by
from benchmarks.accelerator.programs import Program, measure_rates
from benchmarks.gpu_program.counts import REST
from jaxdqn.run.profiling import REGIONS

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_MODULE = re.compile(r"^HloModule ([\w.\-]+)")
_CONTROL = ("while", "conditional", "call")
"""Operations whose events on the host enclose the events of other operations."""


class Event(NamedTuple):
    """Execution of an operation of a compiled program."""

    name: str
    operation: str
    """Name of the instruction of the program."""
    module: str
    """Name of the program."""
    microseconds: float


def kernel_cells(sizes: Sizes) -> list[Cell]:
    """Return a cell for each configuration whose kernels are timed."""
    cells = []
    for name, config in kernel_configs(sizes).items():
        # Few iterations: the profiler keeps a limited number of events.
        program = Program(config, 2 if config.algorithm == "pqn" else 10)
        cells.append(Cell(name, measured_by(measure_kernels, program, sizes), program.prepare))
    return cells


def measure_kernels(program: Program, sizes: Sizes) -> dict[str, Any]:
    """Time a chunk, then trace another; return the microseconds per iteration by part.

    While the profiler runs, XLA launches the kernels of CUDA graphs one by one, so the time between
    kernels is longer than in training. Compare the sum of the kernels with ``us_per_iteration``.
    """
    rates = measure_rates(program, sizes)
    run = program.start()
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        events = read_events(Path(folder))
    text = program.chunk.as_text()
    return {**rates, **summarise(events, text, program.iterations)}


def summarise(events: Iterable[Event], text: str, iterations: int) -> dict[str, Any]:
    """Return launches and microseconds of an iteration, by part and by kernel.

    Args:
        events: events of the trace; events of other programs are ignored.
        text: compiled program, as HLO.
        iterations: number of iterations that the program has run.
    """
    module, parts = module_of(text), part_of_each(text)
    by_part: dict[str, float] = defaultdict(float)
    by_name: dict[str, float] = defaultdict(float)
    launches = 0
    for event in events:
        if event.module != module or event.operation.split(".")[0] in _CONTROL:
            continue
        launches += 1
        by_part[parts.get(event.operation, REST)] += event.microseconds
        by_name[event.name] += event.microseconds
    if not launches:
        raise ValueError(f"the trace has no event of the program {module}")
    return {
        "launches": launches / iterations,
        "kernel_us": sum(by_part.values()) / iterations,
        "kernel_us_by_part": _shares(by_part, iterations),
        "longest": dict(list(_shares(by_name, iterations).items())[:10]),
    }


def module_of(text: str) -> str:
    """Return the name of a compiled program from its HLO text."""
    found = _MODULE.match(text)
    if found is None:
        raise ValueError("the text of the program has no HloModule")
    return found[1]


def part_of_each(text: str) -> dict[str, str]:
    """Return the innermost named region of each instruction of a compiled program."""
    parts = {}
    for line in text.splitlines():
        instruction, scope = _INSTRUCTION.match(line), _OP_NAME.search(line)
        if instruction is not None:
            parts[instruction[1]] = region_of(scope[1]) if scope is not None else REST
    return parts


def region_of(op_name: str) -> str:
    """Return the innermost named region in the name of an operation."""
    scopes = re.split(r"[/()]", op_name)
    return next((scope for scope in reversed(scopes) if scope in REGIONS), REST)


def read_events(folder: Path) -> list[Event]:
    """Return the events of compiled programs in a trace.

    On an accelerator the events are on the lines of its streams; other lines of a device repeat
    them by program and by region. On a CPU they are on the lines of the threads.
    """
    files = sorted(folder.rglob("*.xplane.pb"))
    if not files:
        raise ValueError("the profiler has written no trace")
    planes = list(jax.profiler.ProfileData.from_file(str(files[-1])).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    chosen = devices or [plane for plane in planes if plane.name.startswith("/host:CPU")]
    lines = [line for plane in chosen for line in _lines(plane.lines, on_device=bool(devices))]
    found = [_event(event) for line in lines for event in line.events]
    return [event for event in found if event is not None]


def _lines(lines: Iterable[Any], *, on_device: bool) -> list[Any]:
    """Return the lines of a plane that contain each execution once."""
    every = list(lines)
    if not on_device:
        return every
    streams = [line for line in every if line.name.startswith("Stream")]
    return streams or [line for line in every if line.name == "XLA Ops"]


def _event(event: Any) -> Event | None:
    """Return an event of a compiled program; None for other events."""
    stats = dict(event.stats)
    operation, module = stats.get("hlo_op"), stats.get("hlo_module")
    if operation is None or module is None:
        return None
    return Event(event.name, str(operation), str(module), event.duration_ns / 1_000)


def _shares(totals: Mapping[str, float], iterations: int) -> dict[str, float]:
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return {name: microseconds / iterations for name, microseconds in ordered}
