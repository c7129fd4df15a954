"""Learning curves, drawn from run directories: of single runs, or over the seeds of groups."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdqn.config.config import Config
from jaxdqn.lazy_modules import import_matplotlib
from jaxdqn.monitoring.groups import AXES, Axis, Group, band_of, labels_of
from jaxdqn.monitoring.styles import styles
from jaxdqn.monitoring.terminal import seeds_of
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.jsonl import FILES, Record, read_lines

_DETAILS = {
    "return_mean": "return in training",
    "loss": "loss",
    "grad_norm": "gradient norm",
    "q_mean": "mean Q of the actions",
    "abs_td_mean": "mean |TD error|",
    "q_max": "mean maximum of Q",
    "target_gap": "distance from the target network",
    "sample_age": "age of drawn rows",
    "effective_sample_size": "effective sample size",
    "epsilon": "epsilon",
    "env_steps_per_second": "environment steps/s",
    "length_mean": "episode length",
    "env_share": "share of time in environments",
    "wait_share": "share waiting for the learner",
    "parameter_age": "age of the actors' parameters",
    "gradient_staleness": "staleness of gradients",
    "actor_busy_share": "busy share of the actors",
    "learner_busy_share": "busy share of the learner",
    "server_busy_share": "busy share of the server",
    "blocks_queue_length": "blocks in the queue",
}
"""Metrics shown by ``plot_details``, with their titles."""

_DETAILS_PER_ROW = 3
_MOST_IN_LEGEND = 18

_FEW_POINTS = 25
"""A curve with fewer points is drawn with a marker at each point."""


def plot_runs(
    runs: Sequence[str | os.PathLike[str]],
    out: Any,
    *,
    axis: Axis | None = None,
    dpi: int = 120,
    format: str | None = None,
) -> None:
    """Plot the training and evaluation returns of each run, over steps and over time.

    For a population, each learner is drawn as a thin line, and the axis counts the steps of one
    learner.

    Args:
        runs: run directories.
        out: output figure, a path or an open file; the suffix selects the format.
        axis: single axis to draw; by default both, with one panel each.
        dpi: dots per inch.
        format: file format of the figure; by default given by the suffix.

    Raises:
        ValueError: if a run directory cannot be read, or ``out`` cannot be written.
    """
    figure, panels = _panels(axis)
    configs = [read_config(run) for run in runs]
    for index, (run, config) in enumerate(zip(runs, configs, strict=True)):
        name = Path(run).resolve().name
        label = "" if len(runs) == 1 else f"{config.env}, {seeds_of(config)} ({name}): "
        line, colour = styles()[index % len(styles())]
        for column, panel in panels.items():
            _draw(panel, Path(run), config, column, label, colour, line)
    for threshold in {config.solve_return for config in configs} - {None}:
        _mark_solved(panels, threshold)
    population = any(config.learners > 1 for config in configs)
    _finish(figure, panels, "episode return", "learner" if population else None)
    titles = {f"{config.env}, {seeds_of(config)}" for config in configs}
    if len(titles) == 1:
        figure.suptitle(titles.pop())
    _save(figure, out, dpi, format)


def plot_groups(
    groups: Sequence[Group],
    out: Any,
    *,
    axis: Axis | None = None,
    dpi: int = 120,
    format: str | None = None,
) -> None:
    """Plot the interquartile mean over the seeds of each group, with its bootstrap interval.

    Args:
        groups: groups of runs.
        out: output figure, a path or an open file.
        axis: single axis to draw; by default both, with one panel each.
        dpi: dots per inch.
        format: file format of the figure; by default given by the suffix.

    Raises:
        ValueError: if ``out`` cannot be written.
    """
    figure, panels = _panels(axis)
    for group, label, (line, colour) in zip(
        groups, labels_of(groups), itertools.cycle(styles()), strict=False
    ):
        for column, panel in panels.items():
            band = band_of(group, column)
            middle, low, high = zip(*band.estimates, strict=True)
            marker = "o" if len(band.x) < _FEW_POINTS else None
            panel.plot(band.x, middle, line, color=colour, label=label, marker=marker, markersize=3)
            if len(group.seeds) > 1:
                panel.fill_between(band.x, low, high, color=colour, alpha=0.2, linewidth=0)
    for threshold in {group.solve_return for group in groups} - {None}:
        _mark_solved(panels, threshold)
    several = any(len(group.seeds) > 1 for group in groups)
    ylabel = "greedy return, IQM and 95 % interval" if several else "greedy return"
    _finish(figure, panels, ylabel, "seed" if several else None)
    if len(envs := {group.values["env"] for group in groups}) == 1:
        figure.suptitle(envs.pop())
    _save(figure, out, dpi, format)


def plot_details(
    runs: Sequence[str | os.PathLike[str]], out: Any, *, format: str | None = None
) -> None:
    """Plot learning metrics over environment steps: one small panel per metric, one line per run.

    Args:
        runs: run directories.
        out: output figure, a path or an open file.
        format: file format of the figure; by default given by the suffix.

    Raises:
        ValueError: if a run directory cannot be read, or ``out`` cannot be written.
    """
    records = [read_lines(Path(run) / FILES["metrics"]) for run in runs]
    divisors = [read_config(run).learners for run in runs]
    shown = [name for name in _DETAILS if any(name in line for lines in records for line in lines)]
    down = -(-len(shown) // _DETAILS_PER_ROW) or 1
    figure = _figure((10, 2.4 * down))
    panels = figure.subplots(down, _DETAILS_PER_ROW, squeeze=False).ravel()
    for panel, name in itertools.zip_longest(panels, shown):
        if name is None:
            panel.set_axis_off()
            continue
        for lines, divisor, (line, colour) in zip(
            records, divisors, itertools.cycle(styles()), strict=False
        ):
            points = [(record["env_steps"] / divisor, record[name]) for record in lines
                      if record.get(name) is not None]  # fmt: skip
            panel.plot(*zip(*points, strict=True) if points else ([], []), line, color=colour,
                       linewidth=1.2)  # fmt: skip
        panel.set_title(_DETAILS[name], fontsize="medium")
        _style(panel, engineering=("x", "y") if name == "env_steps_per_second" else ("x",))
    figure.get_layout_engine().set(h_pad=0.1)
    for panel in panels[max(0, len(shown) - _DETAILS_PER_ROW) : len(shown)]:
        panel.set_xlabel("environment steps", fontsize="small")
    if 1 < len(runs) <= _MOST_IN_LEGEND:
        names = [Path(run).resolve().name for run in runs]
        figure.legend(panels[0].lines, names, fontsize="small", loc="outside lower center", ncols=6)
    _save(figure, out, 120, format)


def _figure(size: tuple[float, float]) -> Any:
    import_matplotlib()
    # Avoid pyplot, which connects to a window system and keeps global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(panel: Any, engineering: Sequence[str]) -> None:
    from matplotlib.ticker import EngFormatter

    for name in engineering:
        getattr(panel, f"{name}axis").set_major_formatter(EngFormatter(sep=""))
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _panels(axis: Axis | None) -> tuple[Any, dict[Axis, Any]]:
    """Return a figure and its panels by axis."""
    columns: list[Any] = list(AXES) if axis is None else [axis]
    figure = _figure((10 if axis is None else 6.5, 4.5))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    return figure, dict(zip(columns, panels, strict=True))


def _mark_solved(panels: dict[Axis, Any], threshold: Any) -> None:
    for panel in panels.values():
        panel.axhline(threshold, color="0.45", linestyle=":", label=f"solved: {threshold:g}")


def _finish(figure: Any, panels: dict[Axis, Any], ylabel: str, each: str | None) -> None:
    """Label the axes and add a legend below the panels, where it covers no line."""
    for column, panel in panels.items():
        of_each = f" of each {each}" if each and column == "env_steps" else ""
        panel.set_xlabel(f"{AXES[column]}{of_each}")
        _style(panel, engineering=("x",) if column == "env_steps" else ())
    first = next(iter(panels.values()))
    first.set_ylabel(ylabel)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=2)


def _save(figure: Any, out: Any, dpi: int, format: str | None = None) -> None:
    try:
        figure.savefig(out, dpi=dpi, format=format)
    except OSError as error:
        raise ValueError(f"out={str(out)!r}: must be writable: {error.strerror}") from error


def _draw(
    panel: Any, run: Path, config: Config, column: str, label: str, color: str, line: str = "-"
) -> None:
    """Draw a run; for a population, the mean, and each learner's evaluations as thin lines."""
    # Records count steps over all learners; the plot shows the steps of one learner.
    steps_divisor = config.learners if column == "env_steps" else 1
    training = [
        record for record in read_lines(run / FILES["metrics"]) if record["return_mean"] is not None
    ]
    evaluations = [
        record
        for record in read_lines(run / FILES["evaluation"])
        # A non-finite return is null in the file and cannot be drawn.
        if record["purpose"] == "evaluate" and record["return_mean"] is not None
    ]
    several = config.learners > 1
    mean_of = f", mean of {config.learners} learners" if several else ""
    panel.plot(
        [record[column] / steps_divisor for record in training],
        [record["return_mean"] for record in training],
        color=color,
        linestyle=line,
        alpha=0.45,
        label=f"{label}training, with exploration{mean_of}",
    )
    positions = [record[column] / steps_divisor for record in evaluations]
    panel.errorbar(
        positions,
        [record["return_mean"] for record in evaluations],
        yerr=None if several else [_standard_error(record) for record in evaluations],
        color=color,
        linestyle=line,
        marker="o",
        markersize=3,
        label=f"{label}greedy evaluation{mean_of or ' ± standard error'}",
    )
    for learner in range(config.learners if several else 0):
        returns = [record["learners"][learner] for record in evaluations]
        panel.plot(
            positions,
            [math.nan if value is None else value for value in returns],
            color=color,
            linewidth=0.8,
            alpha=max(0.2, config.learners**-0.5),
            label=f"{label}greedy evaluation, each learner" if learner == 0 else None,
        )


def _standard_error(record: Record) -> float:
    return record["return_std"] / record["episodes"] ** 0.5
