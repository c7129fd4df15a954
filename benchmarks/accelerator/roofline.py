"""Share of the device's rates that iterations reach, by ``benchmarks.roofline``."""

from __future__ import annotations

from typing import Any

from benchmarks.accelerator.configs import kernel_configs
from benchmarks.accelerator.plan import Cell, Sizes, measured_by
from benchmarks.roofline.device import TINY, DeviceRates, effort_for_device, measure_device
from benchmarks.roofline.measure import measure_preset
from jaxdqn.config.config import Config


def roofline_cells(sizes: Sizes) -> list[Cell]:
    """Return a cell for each configuration of ``kernels``; the device is measured once."""
    known: list[DeviceRates] = []

    def device() -> DeviceRates:
        if not known:
            known.append(measure_device(TINY if sizes.shrunk else effort_for_device()))
        return known[0]

    def measure(config: Config) -> dict[str, Any]:
        repetitions = 2 if sizes.shrunk else (4 if config.algorithm == "pqn" else 50)
        found = measure_preset(
            config, device(), repetitions=repetitions, rounds=sizes.rounds, seconds=sizes.seconds
        )
        return {**found, "device": device()._asdict()}

    return [
        Cell(name, measured_by(measure, config)) for name, config in kernel_configs(sizes).items()
    ]
