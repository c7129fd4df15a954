"""Picture of measured techniques: bars of the speed-ups on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.techniques.records import Record, verdict

# Colours of Okabe and Ito, which are distinguishable with a colour vision deficiency. The hatching
# distinguishes the verdicts without colour.
_STYLES = {
    "faster here": {"color": "#0072B2", "hatch": ""},
    "no difference shown": {"color": "#999999", "hatch": ".."},
    "slower here": {"color": "#E69F00", "hatch": "//"},
}


def draw(records: Sequence[Record], out: str | Path, title: str) -> None:
    """Draw a bar for each measured case, from 1 to its speed-up, with its interval.

    Args:
        records: records of the techniques; those without results are omitted.
        out: picture to write; its suffix selects the format.
        title: title of the picture, such as the machine.
    """
    from jaxdqn.lazy_modules import import_matplotlib

    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    bars = [(record["technique"], each) for record in records for each in record.get("results", ())]
    figure = Figure(figsize=(10, 1.8 + 0.24 * max(1, len(bars))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, style in _STYLES.items():
        _bars(axes, bars, name, style)
    labels = [f"{technique}: {each['case']}" for technique, each in bars]
    axes.set_yticks(range(len(bars)), labels, fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(_ticks([each for _, each in bars]))
    axes.set_xlabel("speed-up over the baseline of each technique (logarithmic)")
    axes.set_title(title, fontsize=8, wrap=True)
    axes.grid(axis="x", alpha=0.3)
    if bars:
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(Path(out), dpi=120)


def _bars(
    axes: Any, bars: Sequence[tuple[str, Mapping[str, Any]]], name: str, style: Mapping[str, str]
) -> None:
    """Draw the bars of one verdict."""
    chosen = [
        (y, bar["speed_up"]) for y, (_, bar) in enumerate(bars) if verdict(bar["speed_up"]) == name
    ]
    if not chosen:
        return
    medians = [speed_up["median"] for _, speed_up in chosen]
    errors = [
        [max(0.0, s["median"] - s["low"]) for _, s in chosen],
        [max(0.0, s["high"] - s["median"]) for _, s in chosen],
    ]
    # From 1, so that faster bars extend to the right and slower ones to the left.
    axes.barh(
        [y for y, _ in chosen], [median - 1.0 for median in medians], left=1.0, xerr=errors,
        height=0.7, label=name, edgecolor="black", linewidth=0.4, error_kw={"linewidth": 1},
        **style,
    )  # fmt: skip


def _ticks(results: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return ticks of 1, 2, 5 times powers of ten that enclose all intervals."""
    low = min([each["speed_up"]["low"] for each in results] + [0.9])
    high = max([each["speed_up"]["high"] for each in results] + [1.1])
    steps = [factor * 10.0**power for power in range(-3, 5) for factor in (1, 2, 5)]
    below = max((step for step in steps if step <= low), default=steps[0])
    above = min((step for step in steps if step >= high), default=steps[-1])
    return [step for step in steps if below <= step <= above]
