"""Count the operations of each preset's traced chunk: ``python -m benchmarks.operations``.

XLA has to compile the operations that JAX traces. The count is exact, needs no accelerator, and
does not depend on the machine, so a test compares it with a recorded count. ``--compile`` also
measures the compilation for the CPU in processor seconds of all threads, which depend less on the
load of the machine than seconds of a clock.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdqn.cli.flags import parse, run_command

ITERATIONS = 11
"""Number of iterations of the chunk; it does not affect the count."""
START, END = "<!-- compile times -->", "<!-- end of compile times -->"
"""Lines around the table in a page."""

_OPERATION = re.compile(r"^\s+(?:%\S+ = )?\"?(?:stablehlo|chlo)\.([a-z_]+)", re.M)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    only: tuple[str, ...] = ()
    """Presets; by default those of ``python -m benchmarks.gpu_program`` on one device."""
    compile: bool = False
    """Compile each program for the CPU, without the cache on disk, and measure the processor
    seconds."""
    json: str | None = None
    """File for the counts, such as benchmarks/results/operations.json. With --only, the other
    programs in the file are kept."""
    read: str | None = None
    """Count nothing, and take the figures from a file that --json has written."""
    page: str | None = None
    """Page whose table of compile times is replaced, such as docs/gpu-program.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.operations", description=__doc__)
    from benchmarks.report import around_marks, check_writable, format_table, write_json

    if flags.page is not None:
        around_marks(Path(flags.page), START, END)
    if flags.read is not None:
        record = _stored("read", flags.read)
    else:
        check_writable(flags.json)
        kept = flags.only and flags.json is not None and Path(flags.json).exists()
        record = _measure(flags, _stored("json", str(flags.json)) if kept else None)
    print(format_table(_HEADER, _rows(record)))
    if flags.json is not None and flags.read is None:
        write_json(flags.json, record)
    if flags.page is not None:
        write_page(Path(flags.page), record)


def _measure(flags: Flags, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Count, and compile if the flags say so; add to the record ``before``, if there is one.

    Raises:
        ValueError: if that record is of other versions.
    """
    from benchmarks.gpu_program.cases import CASES, selected
    from benchmarks.report import stamp
    from benchmarks.timing import compile_cold

    stamped = stamp()
    record: dict[str, Any] = {"versions": stamped["versions"], "operations": {}}
    if before is not None:
        if before["versions"] != record["versions"]:
            raise ValueError(f"json={flags.json!r}: must be of the same versions with --only; count"
                             " all programs")  # fmt: skip
        record = {**before}
    compiled = dict(record.get("compile", {}).get("seconds", {}))
    if flags.compile:
        compile_cold()
    for case in (case for case in selected(flags.only) if is_counted(case)):
        lowered = lower(case.config())
        record["operations"][case.name] = operations_in(lowered)
        if flags.compile:
            started = time.process_time()
            lowered.compile()
            compiled[case.name] = time.process_time() - started
            print(f"{case.name}: compiled in {compiled[case.name]:.1f} s", flush=True)
    order = [name for name in CASES if name in record["operations"]]
    record["operations"] = {name: record["operations"][name] for name in order}
    if flags.compile:
        seconds = {name: compiled[name] for name in order if name in compiled}
        record["compile"] = {"stamp": stamped, "seconds": seconds}
    return record


def is_counted(case: Any) -> bool:
    """Return True for programs of one learner on one device."""
    return case.config().learners == case.devices == 1


def lower(config: Any) -> Any:
    """Trace a chunk and lower it for the CPU."""
    import jax

    from jaxdqn.training.trainer import make_trainer

    trainer = make_trainer(config)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    traced = jax.jit(trainer.chunk(ITERATIONS), donate_argnums=0).trace(state)
    return traced.lower(lowering_platforms=("cpu",))


def operations_in(lowered: Any) -> int:
    """Return the number of operations of a lowered program; functions count once."""
    return len(_OPERATION.findall(lowered.as_text()))


def count_operations(config: Any) -> int:
    """Return the number of operations of a chunk lowered for the CPU."""
    return operations_in(lower(config))


_HEADER = ("program", "operations", "compile CPU s")


def _rows(record: Mapping[str, Any]) -> list[list[Any]]:
    """Return the rows of the table; ``-`` for a program that was not compiled."""
    seconds = record.get("compile", {}).get("seconds", {})
    return [
        [name, f"{count:,}", f"{seconds[name]:.1f}" if name in seconds else "-"]
        for name, count in record["operations"].items()
    ]


def write_page(page: Path, record: Mapping[str, Any]) -> None:
    """Replace the table of compile times in a page.

    Raises:
        ValueError: if the page has no place for it, or the record has no compile times.
    """
    from benchmarks.report import around_marks, describe, format_markdown

    if "compile" not in record:
        raise ValueError(f"page='{page}': must come with compile times; measure with --compile")
    before, after = around_marks(page, START, END)
    rows = [[f"`{name}`", *rest] for name, *rest in _rows(record)]
    about = f"Measured on {describe(record['compile']['stamp'])}."
    content = "\n\n".join((about, format_markdown(_HEADER, rows)))
    page.write_text(f"{before}{START}\n{content}\n{END}{after}", encoding="utf-8")


def _stored(option: str, path: str) -> dict[str, Any]:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}={path!r}: must be a file that --json has written") from error


if __name__ == "__main__":
    raise SystemExit(main())
