"""Measure the speed-up of each acceleration technique: ``jaxdqn compare``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import (
    check_writable,
    describe,
    format_markdown,
    format_table,
    stamp,
    write_json,
)
from benchmarks.timing import RATIOS, compile_cold
from jaxdqn.cli.flags import parse, run_command

if TYPE_CHECKING:
    from benchmarks.techniques.registry import Result, Technique

MEASURED = ("technique", "case", "against", "speed-up", "of")
DESCRIBED = ("technique", "principle", "good for", "costs", "measured on")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    only: tuple[str, ...] = ()
    """Techniques to measure; by default all."""
    quick: bool = False
    """Fewer cases, measured briefly: a first look, not a measurement."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/techniques.json."""
    markdown: str | None = None
    """File for the tables in Markdown."""


def measured_rows(technique: Technique, results: Sequence[Result]) -> list[list[Any]]:
    """Return the rows of a technique in the table of speed-ups."""
    return [
        [technique.name, result.case, result.against, result.speed_up, result.of]
        for result in results
    ]


def described_row(technique: Technique) -> list[str]:
    """Return the row of a technique in the table of descriptions."""
    return [
        technique.name,
        technique.principle,
        technique.good_for,
        technique.costs,
        technique.measured_on,
    ]


def as_markdown(
    machine: str, techniques: Sequence[Technique], rows: Sequence[Sequence[Any]]
) -> str:
    """Format both tables in Markdown, with the machine of the measurement."""
    described = [described_row(technique) for technique in techniques]
    return "\n\n".join(
        [
            f"Measured on {machine}. Speed-up {RATIOS}.",
            format_markdown(MEASURED, rows),
            format_markdown(DESCRIBED, described),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn compare", description=__doc__)
    check_writable(flags.json)
    check_writable(flags.markdown)
    from benchmarks.techniques import table  # noqa: F401 (registers the techniques)
    from benchmarks.techniques.registry import FULL, QUICK, select_techniques

    techniques = select_techniques(flags.only)
    compile_cold()
    effort = QUICK if flags.quick else FULL
    stamped = stamp()
    print(describe(stamped))
    rows, report = [], []
    for technique in techniques:
        if sys.stderr.isatty():
            print(f"measuring {technique.name}", file=sys.stderr)
        results = technique.measure(effort)
        rows += measured_rows(technique, results)
        described = dict(zip(DESCRIBED, described_row(technique), strict=True))
        report.append({**described, "results": results})
        if flags.json is not None:
            # After each technique, so that an interrupted benchmark keeps its results.
            write_json(flags.json, {"stamp": stamped, "effort": effort, "techniques": report})
    print(f"speed-up {RATIOS}\n\n{format_table(MEASURED, rows)}\n")
    for technique in techniques:
        print(_description(technique))
    if flags.markdown is not None:
        target = Path(flags.markdown)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(as_markdown(describe(stamped), techniques, rows) + "\n")


def _description(technique: Technique) -> str:
    name, *texts = described_row(technique)
    lines = [f"  {title}: {text}" for title, text in zip(DESCRIBED[1:], texts, strict=True)]
    return "\n".join([name, *lines])


if __name__ == "__main__":
    sys.exit(main())
