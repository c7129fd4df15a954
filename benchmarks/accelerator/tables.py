"""Tables and picture of the accelerator benchmark. Imports no JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.targets import Results, Verdict
from benchmarks.report import format_table

MEBI = 2**20


def section_table(section: str, results: Results) -> str:
    """Format the results of a section, a line for each cell."""
    headers, row = _TABLES[section]
    return format_table(["", *headers], [[name, *row(result)] for name, result in results.items()])


def targets_table(verdicts: Sequence[Verdict]) -> str:
    """Format the targets and the verdicts."""
    rows = [[verdict.target, verdict.measured, verdict.text] for verdict in verdicts]
    return format_table(["target", "measured", ""], rows)


def draw_rates(results: Results, file: Path) -> None:
    """Draw environment and gradient steps per second over E, a line for each program.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, count in zip(panels, ("env_steps", "gradient_steps"), strict=True):
        for name, points in rate_lines(results, f"{count}_per_second").items():
            axes.loglog(*zip(*points, strict=True), marker="o", label=name)
        axes.set_xlabel("environments E")
        axes.set_title(f"{'environment' if count == 'env_steps' else 'gradient'} steps/s")
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.savefig(file, dpi=120)


def rate_lines(results: Results, rate: str) -> dict[str, list[tuple[int, float]]]:
    """Return the points (E, rate) of each program of the section ``rates``, by name."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for cell, result in results.items():
        name = cell.partition(" E=")[0]
        lines.setdefault(name, []).append((result["num_envs"], result[rate]))
    return {name: sorted(points) for name, points in lines.items()}


def _mebibytes(count: float | None) -> float | str:
    return "-" if count is None else count / MEBI


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value


Row = Callable[[Mapping[str, Any]], list[Any]]

_RATES = ["K", "M", "B", "us/iteration", "env steps/s", "gradient steps/s", "compile s"]
_MEMORY = ["state MiB", "temporary MiB"]


def _rates(result: Mapping[str, Any]) -> list[Any]:
    names = ("rollout_length", "gradient_steps", "batch_size")
    return [
        *(result[name] for name in names),
        result["us_per_iteration"][0],
        result["env_steps_per_second"],
        result["gradient_steps_per_second"],
        result["compile_seconds"],
    ]


def _with_memory(result: Mapping[str, Any]) -> list[Any]:
    memory = (_mebibytes(result["state_bytes"]), _mebibytes(result["temporary_bytes"]))
    return [*_rates(result), *memory]


def _run(result: Mapping[str, Any]) -> list[Any]:
    names = ("seconds_to_solve", "seconds_to_hold", "train_seconds", "eval_seconds",
             "compile_seconds", "rows", "env_steps_per_second", "eval_return_mean")  # fmt: skip
    return [*(_or_dash(result[name]) for name in names), "yes" if result["complete"] else "no"]


def _bitwise(result: Mapping[str, Any]) -> list[Any]:
    differing = {leaf for value in result.values() if isinstance(value, list) for leaf in value}
    return ["yes" if result["bitwise"] else "no", len(differing)]


def _kernels(result: Mapping[str, Any]) -> list[Any]:
    parts = result["kernel_us_by_part"]
    told = ", ".join(f"{name} {microseconds:.1f}" for name, microseconds in parts.items())
    return [result["launches"], result["kernel_us"], result["us_per_iteration"][0], told]


def _roofline(result: Mapping[str, Any]) -> list[Any]:
    iteration = result["parts"]["iteration"]
    return [
        iteration["flops_by_hand"] / 1e6,
        _or_dash(iteration["flops_by_xla"] and iteration["flops_by_xla"] / 1e6),
        iteration["floor_us"],
        iteration["us"],
        f"{iteration['share']:.1%}",
    ]


def _peer(result: Mapping[str, Any]) -> list[Any]:
    ratio = result["ratio"]
    return [
        result["gradient_steps_per_second"]["median"],
        result["jaxdqn_gradient_steps_per_second"]["median"],
        f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
    ]


_RUN_HEADERS = ["solved s", "held s", "train s", "eval s", "compile s", "rows", "env steps/s",
                "return", "complete"]  # fmt: skip
_TABLES: dict[str, tuple[list[str], Row]] = {
    "solve": (_RUN_HEADERS, _run),
    "rates": ([*_RATES, *_MEMORY], _with_memory),
    "pqn": (_RUN_HEADERS, _run),
    "score": (_RUN_HEADERS, _run),
    "population": (_RATES, _rates),
    "replay": (_RATES, _rates),
    "bitwise": (["bitwise", "differing leaves"], _bitwise),
    "memory": ([*_RATES, *_MEMORY], _with_memory),
    "kernels": (["launches", "kernels us", "us/iteration", "us by part"], _kernels),
    "roofline": (["Mflop by hand", "by XLA", "floor us", "us", "share"], _roofline),
    "peers": (["gradient steps/s", "jaxdqn's", "ratio"], _peer),
}
