"""Learning curves from the files of runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdqn.loggers import FILES
from jaxdqn.run_directory import read_config, read_lines

_AXES = (("env_steps", "environment steps"), ("seconds", "wall-clock seconds"))


def plot_runs(
    runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, dpi: int = 120
) -> None:
    """Draw the training and the evaluation return of runs, over steps and over time.

    Args:
        runs: run directories.
        out: the picture to write; its suffix says its format.
        dpi: dots per inch.

    Raises:
        ValueError: if a run directory cannot be read, or ``out`` cannot be written.
    """
    # The figure alone, not pyplot: no window system is asked for, no global state kept.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_AXES), sharey=True)
    labels = []
    for place, run in enumerate(runs):
        config = read_config(run)
        labels.append(f"{config.env}, seed {config.seed}")
        _draw(panels, Path(run), f"{labels[-1]} ({Path(run).name})", f"C{place % 10}", len(runs))
        if config.solve_return is not None and len(runs) == 1:
            for panel in panels:
                panel.axhline(config.solve_return, color="0.6", linestyle=":", label="solved")
    for panel, (_, label) in zip(panels, _AXES, strict=True):
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("episode return")
    panels[0].legend(fontsize="small")
    if len(set(labels)) == 1:
        figure.suptitle(labels[0])
    try:
        figure.savefig(out, dpi=dpi)
    except OSError as error:
        raise ValueError(f"out={str(out)!r}: must be writable: {error.strerror}") from error


def _draw(panels: Any, run: Path, name: str, color: str, num_runs: int) -> None:
    training = [
        record for record in read_lines(run / FILES["metrics"]) if record["return_mean"] is not None
    ]
    evaluations = [
        record
        for record in read_lines(run / FILES["evaluation"])
        if record["purpose"] == "evaluate"
    ]
    prefix = "" if num_runs == 1 else f"{name}: "
    for panel, (column, _) in zip(panels, _AXES, strict=True):
        panel.plot(
            [record[column] for record in training],
            [record["return_mean"] for record in training],
            color=color,
            alpha=0.45,
            label=f"{prefix}training, with exploration",
        )
        panel.errorbar(
            [record[column] for record in evaluations],
            [record["return_mean"] for record in evaluations],
            yerr=[record["return_std"] / record["episodes"] ** 0.5 for record in evaluations],
            color=color,
            marker="o",
            markersize=3,
            label=f"{prefix}evaluation, greedy, ± standard error",
        )
