"""Measure how training scales over devices and learners: ``python -m benchmarks.scaling``.

Accelerators are used if there are any. Otherwise the CPU is divided into virtual devices, which
share its cores: they show the overhead of mapping and communication, and a speed-up only up to the
number of cores.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.scaling.cases import Section, measure_section
from benchmarks.scaling.plan import FULL, QUICK, Plan
from benchmarks.timing import MEDIANS, RATIOS, compile_cold
from jaxdqn.cli.flags import parse, run_command

SECTIONS: tuple[Section, ...] = (
    "unmapped", "link", "strong", "weak", "communication", "model", "population"
)  # fmt: skip
HEADERS: dict[str, list[str]] = {
    "unmapped": ["setting", "mapping", "unmapped, us", "on one device, us", "ratio"],
    "link": ["bytes", "D", "us/all-reduce"],
    "strong": ["setting", "D", "us/gradient step", "speed-up over 1", "efficiency", "collectives"],
    "weak": ["setting", "D", "us/gradient step", "rows learned/s over 1", "efficiency",
             "collectives"],
    "communication": ["setting", "D", "form", "bytes sent", "of float32", "us/gradient step",
                      "speed-up"],
    "model": ["setting", "data x model", "parameter bytes/device", "us/gradient step", "speed-up"],
    "population": ["P", "devices", "how", "compile s", "gradient steps/s", "of each learner",
                   "over one by one"],
}  # fmt: skip
NEED_SEVERAL: tuple[Section, ...] = ("link", "strong", "weak", "communication", "model")
"""Sections that need at least two devices."""
TITLES: dict[str, str] = {
    "unmapped": "the program mapped over one device, relative to the unmapped program",
    "link": "one all-reduce",
    "strong": "strong scaling: one batch and one set of environments, divided over D devices",
    "weak": "weak scaling: the same batch and number of environments on every device",
    "communication": "bytes that a device sends per gradient step, and the resulting speed-up",
    "model": "wide layers (2 x 4096) divided over devices",
    "population": "P learners in one program, relative to P runs one after another on one XLA "
    "thread; each setting in a separate process",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    quick: bool = False
    """Fewer sizes, measured briefly: a first look, not a measurement."""
    sections: tuple[Section, ...] = SECTIONS
    """Sections to measure."""
    virtual_devices: int = 8
    """Number of virtual devices of the CPU, used if there is no accelerator."""
    rounds: int | None = None
    """Rounds of measurement; by default 9, with --quick 3."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/scaling.json."""
    plot: str | None = None
    """Picture of the scaling, such as scaling.png."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.scaling", description=__doc__)
    check_writable(flags.json)
    check_writable(flags.plot)
    if flags.rounds is not None and flags.rounds < 1:
        raise ValueError(f"rounds={flags.rounds}: must be at least 1")
    if flags.virtual_devices < 1:
        raise ValueError(f"virtual_devices={flags.virtual_devices}: must be at least 1")
    plan, virtual = _plan_for_devices(flags)
    compile_cold()
    stamped = stamp()
    kind = "virtual devices, which share the cores" if virtual else "devices"
    print(
        describe(stamped),
        f"{stamped['devices']} {kind}; {MEDIANS}; {RATIOS}",
        sep="\n",
    )
    effort = {**plan.effort._asdict(), "devices": plan.devices, "learners": plan.learners}
    report: dict[str, Any] = {"stamp": stamped, "virtual": virtual, "effort": effort}
    for section in flags.sections:
        if sys.stderr.isatty():
            print(f"measuring {section}", file=sys.stderr)
        print(f"\n{TITLES[section]}")
        if reason := unavailable(section, stamped):
            print(f"skipped: {reason}")
        else:
            rows = report[section] = measure_section(section, plan)
            headers = HEADERS[section]
            print(format_table(headers, [[row[name] for name in headers] for row in rows]))
        if flags.json is not None:
            write_json(flags.json, report)
    if flags.plot is not None:
        draw(report, Path(flags.plot))


def unavailable(section: Section, stamped: Mapping[str, Any]) -> str | None:
    """Return the reason why a section cannot be measured on this machine, or None."""
    if section in NEED_SEVERAL and stamped["devices"] == 1:
        reason = f"needs at least two devices, and there is one {stamped['platform']} device"
        if stamped["platform"] == "cpu":
            reason += "; --virtual-devices 2 divides the CPU into two"
        return reason
    if section == "population" and stamped["platform"] == "tpu":
        return "each setting needs a separate process, and processes cannot share a TPU"
    return None


def _plan_for_devices(flags: Flags) -> tuple[Plan, bool]:
    """Return the plan for the available devices, and whether these are virtual."""
    import jax

    if "population" in flags.sections:
        # Several processes share a GPU; by default JAX would preallocate most of its memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # This has no effect on accelerators.
    jax.config.update("jax_num_cpu_devices", flags.virtual_devices)
    plan = QUICK if flags.quick else FULL
    available = len(jax.devices())
    plan = plan._replace(
        effort=plan.effort._replace(rounds=flags.rounds or plan.effort.rounds),
        devices=tuple(count for count in plan.devices if count <= available),
    )
    return plan, jax.devices()[0].platform == "cpu"


def draw(report: dict[str, Any], out: Path) -> None:
    """Draw speed-ups over the number of devices, and populations over their size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    strong, weak, population = figure.subplots(1, 3)
    devices = "virtual devices (they share the cores)" if report["virtual"] else "devices"
    _draw_devices(strong, report.get("strong", []), "strong scaling", "speed-up over 1")
    _draw_devices(weak, report.get("weak", []), "weak scaling", "rows learned/s over 1")
    for panel in (strong, weak):
        panel.set_xlabel(devices)
    _draw_populations(population, report.get("population", []))
    for panel in (strong, weak, population):
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
        if panel.has_data():
            beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            panel.legend(fontsize="x-small", **(beside if panel is population else {}))
    figure.savefig(out, dpi=120)


def _draw_devices(panel: Any, rows: Sequence[dict[str, Any]], title: str, column: str) -> None:
    for setting in dict.fromkeys(row["setting"] for row in rows):
        _curve(panel, [row for row in rows if row["setting"] == setting], "D", column, setting)
    largest = max((row["D"] for row in rows), default=1)
    panel.plot([1, largest], [1, largest], color="0.7", linestyle=":", label="ideal")
    panel.set(title=title, ylabel=column)
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter("{x:g}")


def _draw_populations(panel: Any, rows: Sequence[dict[str, Any]]) -> None:
    for devices, how in dict.fromkeys((row["devices"], row["how"]) for row in rows):
        chosen = [row for row in rows if (row["devices"], row["how"]) == (devices, how)]
        label = how if devices == 1 else f"{how}, {devices} devices"
        _curve(panel, chosen, "P", "over one by one", label)
    panel.set(title="populations", xlabel="learners", ylabel="over one by one")


def _curve(panel: Any, rows: Sequence[dict[str, Any]], x: str, y: str, label: str) -> None:
    values = [row[y] for row in rows]
    low, high = ([abs(end - value.median) for value, end in zip(values, ends, strict=True)]
                 for ends in ([v.low for v in values], [v.high for v in values]))  # fmt: skip
    panel.errorbar(
        [row[x] for row in rows], [v.median for v in values], yerr=[low, high], marker="o",
        markersize=3, label=label,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
