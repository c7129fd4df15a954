"""Progress of a run on the terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import IO

from jaxdqn.config.config import Config
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.monitoring.output import printable
from jaxdqn.storage.jsonl import Record

_SECONDS_BETWEEN_FRAMES = 0.1
_LEAST_SECONDS, _MOST_SECONDS = 1.0, 60.0
"""Minimum and maximum time between two lines of a kind if the output is not a terminal."""
_SHARE_OF_TIME = 0.05
"""Time between two lines as a fraction of the time since the start, which limits the number of
lines of a long run."""
_NAME = "progress display"


def make_progress_logger(config: Config, stream: IO[str] | None = None) -> Logger:
    """Make a logger that shows the progress of a run: live on a terminal, otherwise as plain lines.

    Plain lines are printed at most once per second. Their rate falls during a long run: after
    twenty minutes it is at most about one per minute.

    Args:
        config: configuration of the run, for its budget.
        stream: output stream; None for standard output.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None:  # the process has no standard output
        return Logger(log=lambda kind, record: None, close=lambda: None, name=_NAME)
    if stream.isatty():
        return _make_live_logger(config, stream)
    return _make_line_logger(config, stream)


def _make_line_logger(config: Config, stream: IO[str]) -> Logger:
    started = time.monotonic()
    last_line = {"metrics": -math.inf, "evaluate": -math.inf}

    def is_due(kind: str) -> bool:
        now = time.monotonic()
        between = min(max(_LEAST_SECONDS, _SHARE_OF_TIME * (now - started)), _MOST_SECONDS)
        if now - last_line[kind] < between:
            return False
        last_line[kind] = now
        return True

    def log(kind: str, record: Record) -> None:
        line = None
        if kind == "start":
            line = _start_line(config, record)
        elif kind == "evaluation" and (record["purpose"] == "confirm" or is_due("evaluate")):
            line = evaluation_line(record)
        elif kind == "event":
            line = record.get("message")
        elif kind == "metrics" and is_due("metrics"):
            line = " | ".join(f"{name} {value}" for name, value in progress_items(config, record))
        if line is not None:
            print(printable(line, stream), file=stream, flush=True)

    return Logger(log=log, close=lambda: None, name=_NAME)


def _make_live_logger(config: Config, stream: IO[str]) -> Logger:
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    live = Live(console=Console(file=stream), auto_refresh=False)
    metrics: Record = {}
    evaluation = ""
    last_frame = -math.inf

    def draw() -> None:
        table = Table.grid(padding=(0, 2))
        table.add_row("", ProgressBar(total=planned_rows(config), completed=metrics.get("rows", 0)))
        for name, value in progress_items(config, metrics) if metrics else ():
            table.add_row(name, value)
        table.add_row("", printable(evaluation, stream))
        live.update(table, refresh=True)

    def log(kind: str, record: Record) -> None:
        nonlocal metrics, evaluation, last_frame
        now = time.monotonic()
        if kind == "start":
            live.console.print(_start_line(config, record), markup=False, highlight=False)
            live.start()
        elif kind == "event" and "message" in record:
            live.console.print(record["message"], markup=False, highlight=False)
        elif kind == "metrics":
            metrics = record
        elif kind == "evaluation":
            evaluation = evaluation_line(record)
        if kind == "summary" or now - last_frame >= _SECONDS_BETWEEN_FRAMES:
            last_frame = now
            draw()
        if kind == "summary":
            live.stop()  # later output is printed below the last frame

    return Logger(log=log, close=live.stop, name=_NAME)


def planned_rows(config: Config) -> int:
    """Return the total rows of a complete run, with the warm-up and over all learners."""
    iterations = config.warmup_iterations + config.num_chunks * config.iterations_per_chunk
    return iterations * config.rows_per_iteration * config.learners


def progress_items(config: Config, metrics: Record) -> list[tuple[str, str]]:
    """Return the displayed items of a metrics record, as (name, text)."""
    rows_left = max(0, planned_rows(config) - metrics["rows"])
    seconds_left = rows_left * metrics["seconds"] / max(1, metrics["rows"])
    minutes, seconds = divmod(round(seconds_left), 60)
    return [
        ("rows", f"{metrics['rows']:,} of {planned_rows(config):,}"),
        ("env steps", f"{metrics['env_steps']:,}"),
        ("env steps/s", f"{metrics['env_steps_per_second']:,.0f}"),
        ("gradient steps/s", f"{metrics['gradient_steps_per_second']:,.0f}"),
        ("return", number(metrics["return_mean"], ".2f") + _range_of_learners(metrics)),
        ("loss", number(metrics["loss"], ".4g")),
        ("epsilon", number(metrics["epsilon"], ".3f")),
        ("time left", f"{minutes}:{seconds:02d}"),
    ]


def evaluation_line(record: Record) -> str:
    """Format an evaluation record as a line of text."""
    purpose = "confirmation" if record["purpose"] == "confirm" else "evaluation"
    start = f"{purpose} at {record['rows']:,} rows, {record['seconds']:.1f} s: return"
    mean = f"{record['return_mean']:.2f}"
    kind = f"{record['epsilon']:g}-greedy" if record.get("epsilon") else "greedy"
    distinct = record["distinct_episodes"]
    repeated = "" if distinct == record["episodes"] else f", {distinct:,} of them distinct"
    if "learners" in record:
        learners = record["learners"]
        held = f", {record['learners_held']} held" if record.get("learners_held") else ""
        low_to_high = _low_to_high([value for value in learners if is_number(value)])
        return (
            f"{start} {mean} over {len(learners)} learners{low_to_high}, each over "
            f"{record['episodes'] // len(learners)} {kind} episodes; learner {record['leader']} "
            f"leads, {record['learners_solved']} solved{held}"
        )
    error = record["return_std"] / math.sqrt(record["episodes"])
    return f"{start} {mean} ± {error:.2f} over {record['episodes']} {kind} episodes{repeated}"


def seeds_of(config: Config) -> str:
    """Describe the seeds and the sweep of a run: ``seeds 0 to 3 of each of gamma=0.9,0.99``."""
    seeds = f"seed {config.seed}"
    if config.num_seeds > 1:
        seeds = f"seeds {config.seed} to {config.seed + config.num_seeds - 1}"
    return f"{seeds} of each of {' x '.join(config.sweep)}" if config.sweep else seeds


def _start_line(config: Config, record: Record) -> str:
    learners = f": {config.learners} learners" if config.learners > 1 else ""
    output = "" if record["out"] is None else f", into {record['out']}"
    acting = f"; acts {record['acting']}" if "acting" in record else ""
    return f"{record['config']['env']}, {seeds_of(config)}{learners}{output}{acting}; compiling"


def _range_of_learners(metrics: Record) -> str:
    """Describe the range of the learners' returns as text; empty for a single learner."""
    if "learners" not in metrics:
        return ""
    return _low_to_high([x for x in metrics["learners"]["return_mean"] if is_number(x)])


def _low_to_high(values: Sequence[float]) -> str:
    return f" ({min(values):.2f} to {max(values):.2f})" if values else ""


def is_number(value: float | None) -> bool:
    """Return True if a value of a record is present and finite."""
    return value is not None and math.isfinite(value)


def number(value: float | None, form: str) -> str:
    """Format a value of a record; a dash if it is absent."""
    return "-" if value is None else format(value, form)
