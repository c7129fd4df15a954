"""Train one preset in several arrangements, and compare their speeds and returns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.projects.training import Arrangement, missing, train


def train_all(
    preset: str, arrangements: Sequence[Arrangement], more: Sequence[str], out: Path
) -> list[dict[str, Any]]:
    """Train each arrangement into its own directory, one after the other.

    Returns:
        the record of each run with its ``name`` and ``command``. An arrangement whose packages are
        missing has ``missing`` instead of the record.
    """
    found = []
    for index, arrangement in enumerate(arrangements):
        flags = [*more, *arrangement.flags]
        about = {
            "name": arrangement.name,
            "command": " ".join(["jaxdqn run", preset, *flags]),
        }
        absent = missing(arrangement.packages)
        run = {"missing": absent} if absent else train(preset, flags, out / str(index))
        found.append({**about, **run})
    return found


def comparison(runs: Sequence[dict[str, Any]], *, crashes: bool = False) -> str:
    """Return the table of arrangements; ``crashes`` adds the share of terminated episodes."""
    from benchmarks.report import short
    from experiments.projects.page import table

    header = ["arrangement", "rows", "seconds", "rows/s", "gradient steps/s",
              "return at the end"]  # fmt: skip
    if crashes:
        header.append("episodes that terminate")
    rows: list[list[Any]] = []
    for run in runs:
        if "missing" in run:
            words = f"not run: {', '.join(run['missing'])} is not installed"
            rows.append([run["name"], words, *[""] * (len(header) - 2)])
            continue
        seconds = run["train_seconds"]
        cells = [run["name"], f"{run['rows']:,}", short(seconds), short(run["rows"] / seconds),
                 short(run["gradient_steps_per_second"]),
                 _number(run["eval_return_mean"])]  # fmt: skip
        if crashes:
            cells.append(_number(run["eval_terminated_share"]))
        rows.append(cells)
    return table(header, rows)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
