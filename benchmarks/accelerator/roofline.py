"""Fraction of the device's peak rates that iterations reach; see ``benchmarks.roofline``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.accelerator.configs import kernel_configs
from benchmarks.accelerator.plan import Cell, Sizes, measured_by
from benchmarks.roofline.device import TINY, DeviceRates, measure_device, sizes_for_device
from benchmarks.roofline.measure import PreparedPreset, measure_preset, prepare_preset
from jaxdqn.config.config import Config


def roofline_cells(sizes: Sizes) -> list[Cell]:
    """Return a cell for each configuration of ``kernels``; the device is measured once."""
    known: list[DeviceRates] = []

    def device() -> DeviceRates:
        if not known:
            known.append(measure_device(TINY if sizes.shrunk else sizes_for_device()))
        return known[0]

    return [_cell(name, config, sizes, device) for name, config in kernel_configs(sizes).items()]


def _cell(name: str, config: Config, sizes: Sizes, device: Callable[[], DeviceRates]) -> Cell:
    repetitions = 2 if sizes.shrunk else (4 if config.algorithm == "pqn" else 50)
    prepared: list[PreparedPreset] = []

    def prepare() -> Callable[[], None]:
        return lambda: prepared.append(prepare_preset(config, repetitions))

    def measure() -> dict[str, Any]:
        rates = device()
        found = measure_preset(prepared[0], rates, rounds=sizes.rounds, seconds=sizes.seconds)
        return {**found, "device": rates._asdict()}

    return Cell(name, measured_by(measure), prepare)
