"""Check all claims about accelerators by measurement: ``python -m benchmarks.accelerator``.

Each section runs in its own process with a time limit, and writes each result at once. A repeated
command measures only results that are missing or failed. Without the section peers, all sections
together take less than nine minutes.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, get_args

import tyro

from benchmarks.accelerator.peers import check_peers
from benchmarks.accelerator.plan import SECTION_SECONDS, SectionName
from benchmarks.accelerator.store import PICTURE, Store, failures_of, results_of
from benchmarks.accelerator.tables import draw_rates, section_table, targets_table
from benchmarks.accelerator.targets import judge
from benchmarks.accelerator.worker import RUNNING, Request, is_of_device
from benchmarks.report import describe
from jaxdqn.cli.flags import FAILED, parse, run_command

OUT = "benchmarks/results/accelerator"
OUT_TINY = "build/accelerator-tiny"
TINY_SECONDS = 600.0
GRACE_SECONDS = 5.0
"""Seconds between the time limit of a section and the end of its process."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    sections: tuple[SectionName, ...] = ()
    """Sections to measure; by default all, but peers only with --peer. solve: time to solve
    CartPole; rates: steps per second by the number of environments; pqn: ten million frames of each
    MinAtar game; score: time to the published score on Breakout; population: many learners in one
    program; replay: prioritised draws compared with uniform draws and with PQN; bitwise: repeated
    and resumed runs; memory: bytes of large replays; kernels: time of kernels by part; roofline:
    share of the peak rates of the device; peers: other libraries."""
    section_seconds: float | None = None
    """Time limit of each section in seconds; by default 20 to 140, depending on the section."""
    peer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Peer to compare with: purejaxrl=FILE (its dqn.py) or purejaxql=FILE (its pqn_minatar.py).
    Repeat the flag for both."""
    peer_python: str = sys.executable
    """Python interpreter in which the peers are installed, with JAX for the same device; by default
    that of this command."""
    again: bool = False
    """Repeat measurements that already have results."""
    tiny: bool = False
    """Run everything at tiny sizes, on any device: a check of the command, not a measurement."""
    out: str | None = None
    """Directory of the results; by default benchmarks/results/accelerator, with --tiny
    build/accelerator-tiny."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> int:
    flags = parse(Flags, argv, prog="python -m benchmarks.accelerator", description=__doc__)
    check(flags)
    launch = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    store = Store(flags.out or (OUT_TINY if flags.tiny else OUT))
    report: dict[str, Any] = {"launch": launch, "tiny": flags.tiny, "sections": {}}
    for section in chosen_sections(flags):
        request = Request(
            section, str(store.directory), seconds_of(flags, section), launch,
            again=flags.again, tiny=flags.tiny, peers=flags.peer,
            peer_python=flags.peer_python,
        )  # fmt: skip
        started = time.perf_counter()
        ended = measure(request, store)
        every = store.read(section)
        records = current(every, flags.tiny, newest_stamp(every.values()))
        report["sections"][section] = {
            "seconds": time.perf_counter() - started, "ended": ended, "cells": records,
        }  # fmt: skip
        _print_section(section, records, ended)
    return finish(store, report)


def check(flags: Flags) -> None:
    """Check the flags before anything is measured.

    Raises:
        ValueError: naming the flag.
    """
    if flags.section_seconds is not None and flags.section_seconds <= 0:
        raise ValueError(f"section_seconds={flags.section_seconds}: must be above 0")
    if "peers" in flags.sections and not flags.peer:
        raise ValueError("peer=(): must name a peer for the section peers, such as purejaxrl=FILE")
    check_peers(flags.peer, flags.peer_python)


def chosen_sections(flags: Flags) -> tuple[str, ...]:
    """Return the sections to measure, in order."""
    every: tuple[str, ...] = get_args(SectionName)
    return flags.sections or (every if flags.peer else every[: every.index("peers")])


def seconds_of(flags: Flags, section: str) -> float:
    """Return the time limit of a section in seconds."""
    if flags.section_seconds is not None:
        return flags.section_seconds
    return TINY_SECONDS if flags.tiny else SECTION_SECONDS[section]


def measure(request: Request, store: Store) -> str | None:
    """Run the process of a section; return the reason of an early end, or None.

    After a crash the process is restarted for the remaining cells.
    """
    deadline = time.perf_counter() + request.seconds
    while (left := deadline - time.perf_counter()) > 0:
        ended = run_worker(request._replace(seconds=left))
        crashed = _record_crash(request, store, ended)
        if ended is None or not crashed:
            return ended
    return f"the {request.seconds:g} s of the section were over"


def run_worker(request: Request) -> str | None:
    """Run one process of a section; return the reason of a failure, or None."""
    command = [sys.executable, "-m", "benchmarks.accelerator.worker", json.dumps(request._asdict())]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stderr=errors, env=worker_environment(request))
        try:
            code = process.wait(request.seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return f"the {request.seconds:.0f} s of the section were over"
        finally:
            process.kill()
            process.wait()
        if code == 0:
            return None
        errors.seek(0)
        lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return f"exit code {code}: {lines[-1][:500] if lines else 'no message'}"


def worker_environment(request: Request) -> dict[str, str]:
    """Return the environment variables for the process of a section."""
    environment = dict(os.environ)
    if request.tiny:  # compile fast, without optimisation
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()
    if request.section == "peers":  # three processes share the device
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return environment


def _record_crash(request: Request, store: Store, ended: str | None) -> bool:
    """Record the failure of the cell that was running; return whether there was one."""
    found = False
    for cell, record in store.read(request.section).items():
        if record["launch"] == request.launch and record.get("failed") == RUNNING:
            store.write(request.section, cell, {**record, "failed": ended or RUNNING})
            found = True
    return found


def finish(store: Store, report: dict[str, Any]) -> int:
    """Compare all results of the directory with the targets; write the report and the picture."""
    report["stamp"] = newest_stamp(
        record for section in report["sections"].values() for record in section["cells"].values()
    )
    sections = {
        name: results_of(current(store.read(name), report["tiny"], report["stamp"]))
        for name in get_args(SectionName)
    }
    on_accelerator = report["stamp"] is not None and report["stamp"]["platform"] != "cpu"
    verdicts = judge(sections, valid=on_accelerator and not report["tiny"])
    report["targets"] = [{**verdict._asdict(), "text": verdict.text} for verdict in verdicts]
    file = store.write_report(report)
    if report["stamp"] is not None:
        print(f"\n{describe(report['stamp'])}")
    print(targets_table(verdicts))
    if sections["rates"]:
        try:
            draw_rates(sections["rates"], store.directory / PICTURE)
            print(f"picture: {store.directory / PICTURE}")
        except ImportError as error:
            print(f"no picture: {error}")
    print(f"results: {file}")
    failed = _failed(report["sections"])
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return FAILED if failed else 0


def newest_stamp(records: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the stamp of the latest record; None if there are no records."""
    stamps = [record["stamp"] for record in records]
    return max(stamps, key=lambda stamped: stamped["time"], default=None)


def current(
    records: Mapping[str, dict[str, Any]], tiny: bool, stamp: dict[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Return the records with these sizes and the device of a stamp; omit other earlier records.

    Without a stamp the result is empty.
    """
    return {
        cell: record for cell, record in records.items()
        if stamp is not None and record["tiny"] == tiny and is_of_device(record, stamp)
    }  # fmt: skip


def _failed(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each section and cell that was not measured."""
    lines = []
    for name, section in sections.items():
        if section["ended"] is not None:
            lines.append(f"{name}: {section['ended']}")
        lines += [f"{name}, {cell}: {why}" for cell, why in failures_of(section["cells"]).items()]
    return lines


def _print_section(section: str, records: dict[str, dict[str, Any]], ended: str | None) -> None:
    results = results_of(records)
    print(f"\n{section}" + (f" (ended early: {ended})" if ended else ""))
    if results:
        print(section_table(section, results), flush=True)


if __name__ == "__main__":
    sys.exit(main())
