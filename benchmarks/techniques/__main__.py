"""Measure the speed-up of each acceleration technique: ``jaxdqn compare``."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import check_writable, describe, stamp, write_json
from benchmarks.techniques.page import as_markdown, as_text
from benchmarks.techniques.records import (
    Record,
    described,
    finished,
    merged,
    read_report,
    result_record,
)
from benchmarks.timing import compile_cold
from jaxdqn.cli.flags import parse, run_command

if TYPE_CHECKING:
    from benchmarks.techniques.registry import Technique

_QUICK_SECONDS = 150.0
"""Seconds after which ``--quick`` starts no further technique."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    only: tuple[str, ...] = ()
    """Techniques to measure; by default all."""
    quick: bool = False
    """Fewer cases, measured briefly, in less than three minutes: a first look, not a measurement.
    Techniques that do not fit in this time are skipped; with --json, the same command continues
    with them."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/techniques.json. It is written after
    each technique. Techniques with results in the file are not measured again."""
    resume: str | None = None
    """File of an interrupted run whose finished techniques are kept; by default the file of
    --json."""
    fresh: bool = False
    """Measure all techniques again, even if the file of --json has them."""
    read: tuple[str, ...] = ()
    """Format the measurements of these files, written by --json, and measure nothing. For each
    technique the first file that has it is used."""
    markdown: str | None = None
    """File for the page in Markdown, such as docs/techniques.md."""
    picture: str | None = None
    """File for a picture of the speed-ups, such as techniques.png."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn compare", description=__doc__)
    for path in (flags.json, flags.markdown, flags.picture):
        check_writable(path)
    if flags.fresh and flags.resume is not None:
        raise ValueError(f"resume={flags.resume!r}: must be left out with --fresh")
    from benchmarks.techniques import table  # noqa: F401 (registers the techniques)

    if flags.read:
        stamps, records = _read(flags.read)
    else:
        stamps, records = _measure_all(flags)
    print(as_text(records))
    if flags.markdown is not None:
        target = Path(flags.markdown)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(as_markdown(stamps, records))
    if flags.picture is not None:
        from benchmarks.techniques.picture import draw

        Path(flags.picture).parent.mkdir(parents=True, exist_ok=True)
        draw(records, flags.picture, "; ".join(map(describe, stamps)))


def _read(paths: Sequence[str]) -> tuple[list[Mapping[str, Any]], list[Record]]:
    """Return the stamps and the records of files, with the current descriptions."""
    from benchmarks.techniques.registry import TECHNIQUES

    reports = [read_report(path) for path in paths]
    groups: list[dict[str, Record]] = [
        {each["technique"]: each for each in report["techniques"]} for report in reports
    ]
    measured: dict[str, Record] = {}
    for group in reversed(groups):
        measured.update(group)
    missing: Record = {"skipped": "no record yet"}
    records = []
    for name, technique in TECHNIQUES.items():
        found = measured.get(name, missing)
        record = described(technique)
        record.update((key, found[key]) for key in ("results", "skipped") if key in found)
        records.append(record)
    return [report["stamp"] for report in reports], records


def _measure_all(flags: Flags) -> tuple[list[Mapping[str, Any]], list[Record]]:
    """Measure the techniques that are not finished; write the JSON after each."""
    from benchmarks.techniques.registry import FULL, QUICK, TECHNIQUES, select_techniques

    techniques = select_techniques(flags.only)
    effort = QUICK if flags.quick else FULL
    if flags.quick:
        _use_compilation_cache()
    else:
        compile_cold()
    stamped = stamp()
    print(describe(stamped), flush=True)
    earlier = flags.resume or flags.json
    kept: dict[str, Record] = {}
    if earlier is not None and not flags.fresh and (flags.resume or Path(earlier).exists()):
        kept = finished(earlier, stamped, effort)
    measured: dict[str, Record] = {}
    until = time.monotonic() + _QUICK_SECONDS if flags.quick else float("inf")
    for technique in techniques:
        if technique.name not in kept:
            measured[technique.name] = _measure(technique, effort, until)
        records = merged(list(TECHNIQUES), measured, kept)
        if flags.json is not None:
            write_json(flags.json, {"stamp": stamped, "effort": effort, "techniques": records})
    return [stamped], merged(list(TECHNIQUES), measured, kept)


def _measure(technique: Technique, effort: Any, until: float) -> Record:
    """Measure a technique; return its record, which has a reason if the technique is skipped."""
    from benchmarks.techniques.registry import Skipped

    record = described(technique)
    if time.monotonic() > until:
        return {**record, "skipped": "no time left with --quick"}
    if sys.stderr.isatty():
        print(f"measuring {technique.name}", file=sys.stderr)
    start = time.monotonic()
    try:
        results = technique.measure(effort)
    except Skipped as skipped:
        return {**record, "skipped": str(skipped)}
    return {
        **record,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "seconds": round(time.monotonic() - start, 1),
        "results": [result_record(result) for result in results],
    }


def _use_compilation_cache() -> None:
    """Keep compiled programs for later runs of ``--quick``, also those of child processes."""
    import jax

    from jaxdqn.run.compilation_cache import use_persistent_cache

    use_persistent_cache()
    directory = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (mypy does not know it)
    if directory:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory))


if __name__ == "__main__":
    sys.exit(main())
