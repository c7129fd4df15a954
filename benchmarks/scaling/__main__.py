"""Measure how training scales over devices and learners: ``python -m benchmarks.scaling``.

Real devices are used where there are accelerators. Otherwise the CPU is divided
into virtual devices: they share its cores, so that what they show is the overhead
of mapping and communication, and a speed-up only up to the number of cores.
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
from benchmarks.scaling.effort import FULL, QUICK, Effort
from benchmarks.timing import OF_MEDIAN, compile_cold
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
"""Sections that compare devices with each other."""
TITLES: dict[str, str] = {
    "unmapped": "the mapped program on one device over the one that is not mapped",
    "link": "an all-reduce alone",
    "strong": "strong scaling: one batch and one set of environments, divided over D devices",
    "weak": "weak scaling: as much on every device",
    "communication": "what replicas send for a gradient step, each device, and what it brings",
    "model": "wide layers (2 x 4096) divided over devices",
    "population": "learners, all together and each, over as many runs one after the other on one "
    "XLA thread; each setting a process of its own",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    quick: bool = False
    """Fewer sizes, briefly: figures to look at, not to keep."""
    sections: tuple[Section, ...] = SECTIONS
    """What to measure."""
    virtual_devices: int = 8
    """Devices to make of the CPU where there is no accelerator."""
    rounds: int | None = None
    """Alternations; by default 9, or 3 when quick."""
    json: str | None = None
    """File to write the measurements to, such as benchmarks/results/scaling.json."""
    plot: str | None = None
    """File to draw the scaling to, such as scaling.png."""


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
    effort, virtual = _effort_here(flags)
    compile_cold()
    stamped = stamp()
    kind = "virtual devices, which share the cores" if virtual else "devices"
    print(
        describe(stamped),
        f"{stamped['devices']} {kind}; medians (least-greatest); of ratios the median and "
        f"{OF_MEDIAN}",
        sep="\n",
    )
    report: dict[str, Any] = {"stamp": stamped, "virtual": virtual, "effort": effort}
    for section in flags.sections:
        if sys.stderr.isatty():
            print(f"measuring {section}", file=sys.stderr)
        print(f"\n{TITLES[section]}")
        if reason := why_not(section, stamped):
            print(f"skipped: {reason}")
        else:
            rows = report[section] = measure_section(section, effort)
            headers = HEADERS[section]
            print(format_table(headers, [[row[name] for name in headers] for row in rows]))
        if flags.json is not None:
            write_json(flags.json, report)
    if flags.plot is not None:
        draw(report, Path(flags.plot))


def why_not(section: Section, stamped: Mapping[str, Any]) -> str | None:
    """Say why a section cannot be measured on the machine of a stamp; None if it can."""
    if section in NEED_SEVERAL and stamped["devices"] == 1:
        here = f"there is one {stamped['platform']} device"
        if stamped["platform"] == "cpu":
            here += "; --virtual-devices 2 makes as many of the CPU"
        return f"it takes two devices or more, and {here}"
    if section == "population" and stamped["platform"] == "tpu":
        return "each setting is a process of its own, and processes cannot share a TPU"
    return None


def _effort_here(flags: Flags) -> tuple[Effort, bool]:
    """Return the effort for the devices there are, and whether these are virtual."""
    import jax

    if "population" in flags.sections:
        # Its processes need room on a GPU, of which JAX would take most at its start.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # The number of CPU devices counts only where there are no others.
    jax.config.update("jax_num_cpu_devices", flags.virtual_devices)
    effort = QUICK if flags.quick else FULL
    most = len(jax.devices())
    effort = effort._replace(
        rounds=flags.rounds or effort.rounds,
        devices=tuple(count for count in effort.devices if count <= most),
    )
    return effort, jax.devices()[0].platform == "cpu"


def draw(report: dict[str, Any], out: Path) -> None:
    """Draw speed-ups by devices, and populations by their size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    what = "virtual devices (they share the cores)" if report["virtual"] else "devices"
    for panel, (section, column) in zip(
        panels, (("strong", "speed-up over 1"), ("weak", "rows learned/s over 1")), strict=False
    ):
        rows = report.get(section, [])
        for setting in dict.fromkeys(row["setting"] for row in rows):
            _curve(panel, [row for row in rows if row["setting"] == setting], "D", column, setting)
        most = max((row["D"] for row in rows), default=1)
        panel.plot([1, most], [1, most], color="0.7", linestyle=":", label="ideal")
        panel.set(title=f"{section} scaling", xlabel=what, ylabel=column)
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter("{x:g}")
    rows = report.get("population", [])
    for devices, how in dict.fromkeys((row["devices"], row["how"]) for row in rows):
        chosen = [row for row in rows if (row["devices"], row["how"]) == (devices, how)]
        label = how if devices == 1 else f"{how}, {devices} devices"
        _curve(panels[2], chosen, "P", "over one by one", label)
    panels[2].set(title="populations", xlabel="learners", ylabel="over one by one")
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
        if panel.has_data():
            aside = (
                {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if panel is panels[2] else {}
            )
            panel.legend(fontsize="x-small", **aside)
    figure.savefig(out, dpi=120)


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
