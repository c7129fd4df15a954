"""Compare an iteration with the roofline of the device: ``python -m benchmarks.roofline``.

For acting, drawing, learning and the whole iteration, the table has the operations and bytes, by
hand and by XLA's cost analysis; the minimum time at the measured rates of this device (floor); and
the share of the floor in the measured time.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from jaxdqn.cli.flags import parse, run_command

if TYPE_CHECKING:
    from jaxdqn.config.config import Config


class Preset(NamedTuple):
    """Configuration to measure: a preset with some fields replaced."""

    preset: str
    fields: dict[str, Any]

    def config(self) -> Config:
        """Return the configuration."""
        from jaxdqn.config.presets import preset

        return preset(self.preset, **self.fields)


BREAKOUT = {"env": "Breakout-MinAtar"}
PRESETS: dict[str, Preset] = {
    "cartpole": Preset("cartpole", {}),
    "dqn-breakout": Preset("dqn", BREAKOUT),
    "fast-breakout": Preset("fast", BREAKOUT),
    "pqn-breakout": Preset("pqn", BREAKOUT),
}
HEADERS = ["part", "count", "Mflop by hand", "by XLA", "MB by hand", "by XLA", "floor us", "us",
           "share of the floor"]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    only: tuple[str, ...] = ()
    """Presets to measure, of cartpole, dqn-breakout, fast-breakout and pqn-breakout; by default
    all."""
    quick: bool = False
    """Small matrices and few repetitions: a first look, not a measurement."""
    json: str | None = None
    """File for the measurements, such as benchmarks/results/roofline.json."""


def preset_table(found: Mapping[str, Any]) -> str:
    """Format the parts of a preset."""
    rows = [
        [
            name,
            part["count"],
            part["flops_by_hand"] / 1e6,
            _millions(part["flops_by_xla"]),
            part["bytes_by_hand"] / 1e6,
            _millions(part["bytes_by_xla"]),
            part["floor_us"],
            part["us"],
            f"{part['share']:.2%}",
        ]
        for name, part in found["parts"].items()
    ]
    return format_table(HEADERS, rows)


def rates_table(rates: Mapping[str, Any]) -> str:
    """Format the rates of the device."""
    rows = [[f"products, {name}", rate / 1e12, "Tflop/s"] for name, rate in rates["flops"].items()]
    return format_table(["rate", "", ""], [*rows, ["memory", rates["bytes"] / 1e9, "GB/s"]])


def _millions(count: float | None) -> float | str:
    return "-" if count is None else count / 1e6


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.roofline", description=__doc__)
    for name in flags.only:
        if name not in PRESETS:
            raise ValueError(f"only={name!r}: must be one of {', '.join(PRESETS)}")
    check_writable(flags.json)
    from benchmarks.roofline.device import TINY, measure_device, sizes_for_device
    from benchmarks.roofline.measure import measure_preset, prepare_preset

    report: dict[str, Any] = {"stamp": stamp(), "presets": {}}
    print(describe(report["stamp"]))
    device = measure_device(TINY if flags.quick else sizes_for_device())
    report["device"] = device._asdict()
    print(rates_table(report["device"]), flush=True)
    repetitions, rounds, seconds = (2, 2, 0.0) if flags.quick else (50, 5, 0.2)
    for name in flags.only or tuple(PRESETS):
        prepared = prepare_preset(PRESETS[name].config(), repetitions)
        found = measure_preset(prepared, device, rounds=rounds, seconds=seconds)
        report["presets"][name] = found
        print(f"\n{name}, products at {found['precision']} precision")
        print(preset_table(found), flush=True)
        if flags.json is not None:
            write_json(flags.json, report)


if __name__ == "__main__":
    sys.exit(main())
