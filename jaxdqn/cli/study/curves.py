"""Learning curves of a study: panels per environment, one line per preset.

The upper panels have rows as their axis, the lower ones seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxdqn.lazy_modules import import_matplotlib
from jaxdqn.monitoring.statistics import Curve, curve_of
from jaxdqn.monitoring.styles import styles
from jaxdqn.storage.jsonl import Record

CURVES = "curves.png"

_PER_ROW = 3
_SIZE = (4.2, 3.2)
"""Width and height of a panel, in inches."""
Axis = Literal["rows", "seconds"]
_AXES: tuple[Axis, ...] = ("rows", "seconds")
_X_LABELS = {
    "rows": "rows per seed (environment steps and resets)",
    "seconds": "seconds of a run, shared by its seeds",
}
_CHARACTERS = 50
"""Width of the legend below one panel, in characters."""


def draw_curves(
    rows: Mapping[str, Mapping[str, Sequence[Record]]],
    envs: Sequence[str],
    out: Path,
    *,
    dpi: int = 120,
) -> None:
    """Draw the interquartile mean over seeds, with its interval as a band.

    It is drawn against the rows and, if any curve has seconds, against seconds in a second line of
    panels.

    Args:
        rows: results by label and environment.
        envs: environments; each has a panel for each x axis.
        out: picture to write; the suffix selects the format.
        dpi: dots per inch.

    Raises:
        ValueError: if ``out`` cannot be written.
    """
    import_matplotlib()
    # Not pyplot, which keeps global state and may open a window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {name: {env: curve_of(row.get(env, ())) for env in envs} for name, row in rows.items()}
    timed = any(curve.seconds for row in curves.values() for curve in row.values())
    axes = _AXES if timed else _AXES[:1]
    across = min(_PER_ROW, len(envs))
    down = math.ceil(len(envs) / across) * len(axes)
    figure = Figure(figsize=(_SIZE[0] * across, _SIZE[1] * down + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False)
    handles: dict[str, Any] = {}
    for index, axis in enumerate(axes):
        panels = grid[index :: len(axes)].ravel()
        for (name, row), look in zip(curves.items(), itertools.cycle(styles()), strict=False):
            for panel, env in zip(panels, envs, strict=False):
                if getattr(row[env], axis):
                    handles[name] = _draw(panel, row[env], axis, look)
        for panel, env in itertools.zip_longest(panels, envs):
            _finish(panel, env, axis)
    _add_legend(figure, handles, across)
    try:
        figure.savefig(out, dpi=dpi)
    except OSError as error:
        raise ValueError(f"out={str(out)!r}: must be writable: {error.strerror}") from error


def _add_legend(figure: Any, handles: Mapping[str, Any], across: int) -> None:
    """Add a legend below the panels, where it covers no line, at most as wide as the panels."""
    if not handles:
        return
    characters = 4 + max(map(len, handles))
    figure.legend(
        list(handles.values()),
        list(handles),
        fontsize="small",
        loc="outside lower center",
        ncols=max(1, min(len(handles), _CHARACTERS * across // characters)),
    )


def _draw(panel: Any, curve: Curve, axis: Axis, look: tuple[Any, str]) -> Any:
    """Draw a curve and its band against rows or seconds; return the line for the legend."""
    places, (line, colour) = getattr(curve, axis), look
    middle, low, high = zip(*curve.estimates, strict=True)
    # Mark the points of short curves; a single evaluation has no line at all.
    marker = "o" if len(curve.rows) < 25 else None
    (drawn,) = panel.plot(places, middle, color=colour, linestyle=line, marker=marker, markersize=3)
    panel.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
    return drawn


def _finish(panel: Any, env: str | None, axis: Axis) -> None:
    """Set the title and the axis labels of a panel; hide it if it has no environment."""
    from matplotlib.ticker import EngFormatter

    if env is None:
        panel.set_axis_off()
        return
    panel.set_title(env, fontsize="medium")
    if not panel.lines:
        missing = "not run" if axis == "rows" else "no seconds recorded"
        panel.text(0.5, 0.5, missing, ha="center", va="center", transform=panel.transAxes)
        panel.set(xticks=[], yticks=[])
        return
    panel.set_xlabel(_X_LABELS[axis], fontsize="small")
    panel.set_ylabel("greedy return, IQM and 95 % interval", fontsize="small")
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.grid(alpha=0.3)
