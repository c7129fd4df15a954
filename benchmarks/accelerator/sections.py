"""Cells of each section."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from benchmarks.accelerator import configs
from benchmarks.accelerator.bitwise import bitwise_cells
from benchmarks.accelerator.kernels import kernel_cells
from benchmarks.accelerator.peers import peer_cells
from benchmarks.accelerator.plan import Cell, Sizes
from benchmarks.accelerator.programs import timed_cell
from benchmarks.accelerator.roofline import roofline_cells
from benchmarks.accelerator.runs import pqn_cells, score_cells, solve_cells
from jaxdqn.config.config import Config

Configs = Callable[[Sizes], dict[str, Config]]


def cells_of(
    section: str, sizes: Sizes, peers: Sequence[str] = (), peer_python: str = sys.executable
) -> list[Cell]:
    """Return the cells of a section in the order in which they are measured."""
    if section == "peers":
        return peer_cells(peers, peer_python, sizes)
    return _CELLS[section](sizes)


def _timed(configs_of: Configs) -> Callable[[Sizes], list[Cell]]:
    """Return a function that lists a cell for each configuration."""

    def cells(sizes: Sizes) -> list[Cell]:
        return [
            timed_cell(name, config, _iterations(config, sizes), sizes)
            for name, config in configs_of(sizes).items()
        ]

    return cells


def _iterations(config: Config, sizes: Sizes) -> int:
    """Return the number of iterations in a timed chunk; fewer if they have many gradient steps."""
    several = config.gradient_steps_per_iteration > 1
    return sizes.long_iterations if several else sizes.iterations


_CELLS: dict[str, Callable[[Sizes], list[Cell]]] = {
    "solve": solve_cells,
    "rates": _timed(configs.rate_configs),
    "pqn": pqn_cells,
    "score": score_cells,
    "population": _timed(configs.population_configs),
    "replay": _timed(configs.replay_configs),
    "bitwise": bitwise_cells,
    "memory": _timed(configs.memory_configs),
    "kernels": kernel_cells,
    "roofline": roofline_cells,
}
