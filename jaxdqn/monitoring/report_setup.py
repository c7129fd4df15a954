"""Sections of a report on the configuration of runs and on their machines."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from jaxdqn.config.config import Config, to_dict
from jaxdqn.config.presets import preset
from jaxdqn.monitoring.report_page import details, table
from jaxdqn.monitoring.run_files import RunFiles
from jaxdqn.storage.engine_record import engine_text
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.loss_record import LOSS
from jaxdqn.storage.parts import NAMES


def configuration(files: Sequence[RunFiles]) -> str:
    """Return the options that differ from the preset of each run, the own parts and the engines."""
    by_preset: dict[str | None, list[RunFiles]] = {}
    for run in files:
        by_preset.setdefault(run.preset, []).append(run)
    shown = "".join(_changed(name, runs) for name, runs in by_preset.items())
    shown += _parts(files)
    values = [to_dict(run.config) for run in files]
    every = [[name, _joined(values, name)] for name in values[0]]
    return shown + details("All options", table(["option", "value"], every))


def _changed(name: str | None, runs: Sequence[RunFiles]) -> str:
    """Return a table of the options in which runs differ from their preset."""
    base = to_dict(preset(name) if name else Config())
    values = [to_dict(run.config) for run in runs]
    resolved = {"reset"} if base["reset"] == "auto" else set()  # a run stores what auto chose
    rows = [
        [option, _joined(values, option), _plain(base[option])]
        for option in base
        if option not in resolved and any(value[option] != base[option] for value in values)
    ]
    of = f"preset {name}" if name else "default"
    return table(["option", "value", of], rows) if rows else f"<p>As the {of}.</p>"


def _joined(values: Sequence[Record], option: str) -> str:
    return ", ".join(dict.fromkeys(_plain(value[option]) for value in values))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _parts(files: Sequence[RunFiles]) -> str:
    """Return a table of the own parts and the engine of each run; empty if there are none."""
    rows = [
        [run.name, what, value]
        for run in files
        for what, value in (*_parts_of(run.parts), *_engine_of(run.engine))
    ]
    return table(["run", "own part", "reference"], rows) if rows else ""


def _parts_of(record: Record) -> list[tuple[str, str]]:
    own = [
        (name, "object of a Python program" if part is None else part["reference"])
        for name, part in record.items()
        if name in NAMES
    ]
    if LOSS in record:
        own.append(("loss", f"{record[LOSS]['name']}, registered by a Python program"))
    return own


def _engine_of(record: Record | None) -> list[tuple[str, str]]:
    return [] if record is None else [("engine", engine_text(record))]


def machine(files: Sequence[RunFiles]) -> str:
    """Return the throughput of the finished runs, and the machine and versions of each run."""
    head = ["run", "env steps", "gradient steps", "env steps/s", "gradient steps/s", "training",
            "evaluation", "compilation", "devices"]  # fmt: skip
    rows = [
        [
            run.name,
            f"{summary['env_steps']:,}",
            f"{summary['gradient_steps']:,}",
            f"{summary['env_steps_per_second']:,.0f}",
            f"{summary['gradient_steps_per_second']:,.0f}",
            f"{summary['train_seconds']:.1f} s",
            f"{summary['eval_seconds']:.1f} s",
            f"{summary['compile_seconds']:.1f} s",
            f"{summary['devices']} x {summary['device_kind']}",
        ]
        for run in files
        if (summary := run.summary) is not None
    ]
    shown = table(head, rows, numeric_from=1) if rows else "<p>No run is finished.</p>"
    notes = dict.fromkeys(line for run in files for line in _machine_lines(run.identity))
    return shown + "".join(f"<p class='note'>{escape(line)}</p>" for line in notes)


def _machine_lines(identity: Record) -> list[str]:
    """Return the machine and the versions of a run as text; a run of an older version has less."""
    here, versions = identity.get("machine"), identity.get("versions", {})
    lines = []
    if here is not None:
        lines.append(f"{here['cpu']}, {here['cores']} cores, "
                     f"{here['memory_bytes'] / 2**30:.1f} GiB of memory, {here['os']}")  # fmt: skip
    if versions:
        lines.append(", ".join(f"{name} {text}" for name, text in versions.items()))
    return lines
