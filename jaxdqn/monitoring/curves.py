"""Learning curves, drawn from the files of runs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdqn.config.config import Config
from jaxdqn.lazy_modules import import_matplotlib
from jaxdqn.monitoring.terminal import seeds_of
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.jsonl import FILES, Record, read_lines

_AXES = (("env_steps", "environment steps"), ("seconds", "wall-clock seconds"))


def plot_runs(
    runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, dpi: int = 120
) -> None:
    """Plot the training and evaluation returns of runs, over steps and over time.

    For a population, each learner is a thin line, and steps are those of one learner.

    Args:
        runs: run directories.
        out: the picture to write; its suffix selects the format.
        dpi: dots per inch.

    Raises:
        ValueError: if a run directory cannot be read, or ``out`` cannot be written.
    """
    import_matplotlib()
    # Without pyplot, which connects to a window system and keeps global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_AXES), sharey=True)
    configs = [read_config(run) for run in runs]
    for index, (run, config) in enumerate(zip(runs, configs, strict=True)):
        name = Path(run).resolve().name
        label = "" if len(runs) == 1 else f"{config.env}, {seeds_of(config)} ({name}): "
        for panel, (column, _) in zip(panels, _AXES, strict=True):
            _draw(panel, Path(run), config, column, label, f"C{index % 10}")
    for threshold in {config.solve_return for config in configs} - {None}:
        for panel in panels:
            panel.axhline(threshold, color="0.6", linestyle=":", label=f"solved: {threshold:g}")
    for panel, (column, label) in zip(panels, _AXES, strict=True):
        panel.set_xlabel(label)
        if column == "env_steps":
            if any(config.learners > 1 for config in configs):
                panel.set_xlabel(f"{label} of each learner")
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("episode return")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=2)
    titles = {f"{config.env}, {seeds_of(config)}" for config in configs}
    if len(titles) == 1:
        figure.suptitle(titles.pop())
    try:
        figure.savefig(out, dpi=dpi)
    except OSError as error:
        raise ValueError(f"out={str(out)!r}: must be writable: {error.strerror}") from error


def _draw(panel: Any, run: Path, config: Config, column: str, label: str, color: str) -> None:
    """Draw a run: for a population the mean, and the evaluations of each learner as thin lines."""
    # Records count steps over all learners; the plot shows those of one.
    steps_divisor = config.learners if column == "env_steps" else 1
    training = [
        record for record in read_lines(run / FILES["metrics"]) if record["return_mean"] is not None
    ]
    evaluations = [
        record
        for record in read_lines(run / FILES["evaluation"])
        # A return that is not finite is null in the file, and cannot be drawn.
        if record["purpose"] == "evaluate" and record["return_mean"] is not None
    ]
    several = config.learners > 1
    mean_of = f", mean of {config.learners} learners" if several else ""
    panel.plot(
        [record[column] / steps_divisor for record in training],
        [record["return_mean"] for record in training],
        color=color,
        alpha=0.45,
        label=f"{label}training, with exploration{mean_of}",
    )
    positions = [record[column] / steps_divisor for record in evaluations]
    panel.errorbar(
        positions,
        [record["return_mean"] for record in evaluations],
        yerr=None if several else [_standard_error(record) for record in evaluations],
        color=color,
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
