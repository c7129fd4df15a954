"""Measure the cost of loggers, callbacks and diagnostics: ``python -m benchmarks.monitoring``.

Each case is a run of CartPole. Its time is measured from the first chunk to the last, including all
work of the host between chunks.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import check_writable, describe, format_table, stamp, write_json
from benchmarks.timing import MEDIANS, RATIOS, median_interval, spread
from jaxdqn.cli.flags import parse, run_command

BASE = "run directory only"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    rounds: int = 9
    """Runs of each case, one per round."""
    chunks: int = 200
    """Chunks of a run."""
    preset: str = "cartpole"
    """Preset whose configuration is run."""
    out: str | None = None
    """File to write the result to, as JSON."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.monitoring", description=__doc__)
    for name, least in (("rounds", 1), ("chunks", 2)):
        if getattr(flags, name) < least:
            raise ValueError(f"{name}={getattr(flags, name)}: must be at least {least}")
    check_writable(flags.out)
    cases = make_cases(flags.preset, flags.chunks)
    times = measure(cases, flags.rounds)
    ratios = {
        name: median_interval([b / a for a, b in zip(times[BASE], seconds, strict=True)])
        for name, seconds in times.items()
    }
    stamped = stamp()
    print(describe(stamped))
    print(f"milliseconds a chunk, {MEDIANS}; {RATIOS}")
    rows = [(name, spread([1e3 * value for value in times[name]]), ratios[name]) for name in times]
    print(format_table(("case", "ms a chunk", f"over {BASE}"), rows))
    if flags.out is not None:
        found = {name: ratio._asdict() for name, ratio in ratios.items()}
        write_json(flags.out, {"stamp": stamped, "seconds": times, "ratios": found})


def measure(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each case in successive rounds, after a first round that compiles."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for done in range(rounds + 1):
        for name, case in cases.items():
            seconds = case()
            if done:
                times[name].append(seconds)
    return times


def make_cases(preset: str, chunks: int) -> dict[str, Callable[[], float]]:
    """Return functions that train for a number of chunks and return the seconds per chunk."""
    from jaxdqn.config.config import replace
    from jaxdqn.config.presets import preset as preset_of
    from jaxdqn.monitoring.prometheus import make_prometheus_logger
    from jaxdqn.monitoring.tensorboard import make_tensorboard_logger

    config = replace(preset_of(preset), eval_every=0, eval_episodes=1, stop_when="never")
    rows = config.warmup_rows + chunks * config.iterations_per_chunk * config.rows_per_iteration
    config = replace(config, total_rows=rows, chunk_iterations=config.iterations_per_chunk)
    diagnosed = replace(config, diagnostics=True)

    def both() -> list[Any]:
        return [make_tensorboard_logger(), make_prometheus_logger("127.0.0.1:0")]

    return {
        BASE: lambda: seconds_a_chunk(config),
        "TensorBoard, Prometheus": lambda: seconds_a_chunk(config, both()),
        "a callback at every chunk": lambda: seconds_a_chunk(config, (), Nothing()),
        "diagnostics": lambda: seconds_a_chunk(diagnosed),
        "diagnostics, TensorBoard, Prometheus": lambda: seconds_a_chunk(diagnosed, both()),
    }


class Nothing:
    """Callback that reads its record."""

    def on_chunk(self, context: Any) -> None:
        """Read the loss."""
        context.record.get("loss")


def seconds_a_chunk(config: Any, loggers: Sequence[Any] = (), callbacks: Any = ()) -> float:
    """Train a configuration and return the mean seconds per chunk."""
    from jaxdqn.monitoring.loggers import Logger
    from jaxdqn.run.runner import run

    clock: list[float] = []

    def log(kind: str, record: dict[str, Any]) -> None:
        if kind == "metrics":
            clock.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as directory:
        clock_logger = Logger(log, lambda: None)
        run(
            config,
            out=Path(directory) / "run",
            loggers=[*loggers, clock_logger],
            callbacks=callbacks,
        )
    return (clock[-1] - clock[0]) / (len(clock) - 1)


if __name__ == "__main__":
    sys.exit(main())
