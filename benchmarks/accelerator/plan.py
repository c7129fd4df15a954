"""Sections of the accelerator benchmark, their time limits and sizes. Imports no JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

SectionName = Literal[
    "solve", "rates", "pqn", "score", "population", "replay", "bitwise", "memory", "kernels",
    "roofline", "peers",
]  # fmt: skip

SECTION_SECONDS: dict[str, float] = {
    "solve": 30,
    "rates": 100,
    "pqn": 125,
    "score": 80,
    "population": 35,
    "replay": 35,
    "bitwise": 35,
    "memory": 20,
    "kernels": 35,
    "roofline": 40,
    "peers": 90,
}
"""Time limit of each section in seconds, including the start of its process and compilation.
Without ``peers``, which needs files of other libraries, the sum is below nine minutes."""

GAMES = (
    "Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
)  # fmt: skip


class Sizes(NamedTuple):
    """Amount of work of the sections."""

    num_envs: tuple[int, ...] = (32, 512, 8_192, 65_536)
    """Values of E in the section ``rates``."""
    learners: tuple[int, ...] = (1, 8, 64, 256)
    seeds: int = 5
    games: tuple[str, ...] = GAMES
    frames: int = 10_000_000
    """Budget of PQN on each game, in rows."""
    ring_rows: int = 1_000_000
    """Capacity of the replay in the section ``memory``."""
    iterations: int = 100
    """Iterations in a timed chunk of DQN."""
    long_iterations: int = 2
    """Iterations in a timed chunk whose iterations have many gradient steps."""
    rounds: int = 3
    seconds: float = 0.4
    """Approximate minimum duration of one measurement."""
    run_rows: int | None = None
    """Budget of the runs of ``solve`` and ``score`` in rows; None for the budget of the preset."""
    chunks: int = 4
    """Chunks of the runs of ``bitwise``."""
    shrunk: Mapping[str, Any] = {}
    """Fields that make PQN small enough to compile on a CPU; empty at full size."""


FULL = Sizes()
TINY = Sizes(
    num_envs=(4,),
    learners=(1, 2),
    seeds=1,
    games=GAMES[1:2],
    frames=256,
    ring_rows=4_096,
    iterations=2,
    long_iterations=2,
    rounds=2,
    seconds=0.0,
    run_rows=4_000,
    chunks=2,
    shrunk={"rollout_length": 4, "minibatches": 2, "epochs": 1},
)
"""Sizes for checking on a CPU that everything runs; the figures are meaningless."""


Measure = Callable[[float], dict[str, Any]]
"""``measure(seconds) -> result``: measure for about ``seconds``; results are plain values."""


class Cell(NamedTuple):
    """One measurement of a section."""

    name: str
    measure: Measure
    prepare: Callable[[], Callable[[], Any]] | None = None
    """Trace, and return a function that compiles. The programs of all cells of a section are
    compiled concurrently, before the first cell is measured."""


def measured_by(function: Callable[..., dict[str, Any]], *arguments: Any) -> Measure:
    """Return a measurement that calls a function and ignores the time limit."""
    return lambda seconds: function(*arguments)
