"""Report of runs: a single HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import io
import os
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from jaxdqn.monitoring.curves import plot_details, plot_groups, plot_runs
from jaxdqn.monitoring.groups import groups_of
from jaxdqn.monitoring.report_page import Page, code, figure, media, table, tiles
from jaxdqn.monitoring.report_setup import configuration, machine
from jaxdqn.monitoring.reproduce import lines_of
from jaxdqn.monitoring.run_files import RunFiles, read_run
from jaxdqn.monitoring.terminal import number, seeds_of
from jaxdqn.storage.directory import CONFIG
from jaxdqn.storage.jsonl import Record

_MOST_ROWS = 50
"""Maximum number of rows in the table of results; the remaining learners are only counted."""


def report_html(
    runs: Sequence[str | os.PathLike[str]], episode: Path | None = None, note: str = ""
) -> str:
    """Return the report of runs as HTML.

    Args:
        runs: run directories, at least one with an evaluation.
        episode: GIF or MP4 of the policy to embed in the page.
        note: text to show instead of the episode.

    Raises:
        ValueError: if a run cannot be read or has no evaluation.
    """
    files = [read_run(run) for run in runs]
    groups = groups_of(runs)
    envs = list(dict.fromkeys(run.config.env for run in files))
    page = Page(", ".join(envs), _subtitle(files))
    finished = [run for run in files if run.summary is not None]
    if len(finished) < len(files):
        page.add("", f"<p>{len(files) - len(finished)} of {len(files)} runs are not finished.</p>")
    page.add("", tiles(_headlines(files)))
    alone = len(files) == 1 and files[0].config.learners == 1
    svg = io.StringIO()
    if alone:
        plot_runs(runs, svg, format="svg")
    else:
        plot_groups(groups, svg, format="svg")
    page.add("Learning curves", figure(svg.getvalue(), _curve_caption(alone)))
    page.add("Results", _results(files))
    if episode is not None or note:
        page.add("The policy", note or media(episode))
    svg = io.StringIO()
    plot_details(runs, svg, format="svg")
    page.add(
        "Learning in detail",
        figure(svg.getvalue(), "Means over each chunk, one line for each run."),
    )
    page.add("Configuration", configuration(files))
    page.add("Throughput and machine", machine(files))
    page.add("Reproduce", _reproduce(files))
    return page.html()


def _subtitle(files: Sequence[RunFiles]) -> str:
    names = dict.fromkeys(run.preset or "own configuration" for run in files)
    what = f"preset {', '.join(names)}"
    runs = f"{len(files)} runs" if len(files) > 1 else seeds_of(files[0].config)
    return f"{what} · {runs} · jaxdqn {_version(files[0])}"


def _version(run: RunFiles) -> str:
    from jaxdqn import __version__

    return str(run.identity.get("versions", {}).get("jaxdqn", __version__))


def _headlines(files: Sequence[RunFiles]) -> list[tuple[str, str]]:
    """Return (value, meaning) of the key results at the top."""
    rows = [row for run in files for row in _learners(run)]
    if not rows:
        return []
    summaries = [run.summary for run in files if run.summary is not None]
    lasts = [row["last"] for row in rows if row["last"] is not None]
    bests = [row["best"] for row in rows if row["best"] is not None]
    several = len(rows) > 1
    shown = [
        (number(_median(lasts), ".1f"), "return at the end" + (", median" if several else "")),
        (number(max(bests, default=None), ".1f"), "best evaluation"),
    ]
    if any(summary["solve_return"] is not None for summary in summaries):
        solved = [row["solved"] for row in rows if row["solved"] is not None]
        if several:
            shown.append((f"{len(solved)} of {len(rows)}", "learners solved the task"))
        else:
            shown.append((f"{solved[0]:.1f} s" if solved else "no", "solved"))
    speeds = [summary["env_steps_per_second"] for summary in summaries]
    seconds = sum(summary["train_seconds"] for summary in summaries)
    shown.append((f"{_median(speeds):,.0f}", "environment steps/s"))
    shown.append((f"{seconds:,.1f} s", "of training"))
    return shown


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _learners(run: RunFiles) -> list[Record]:
    """Return one row of results for each learner of a finished run."""
    summary = run.summary
    if summary is None:
        return []
    common = {"run": run.name}
    names = {"last": "eval_return_mean", "best": "best_eval_return_mean",
             "solved": "seconds_to_solve", "held": "seconds_to_hold"}  # fmt: skip
    learners = summary.get("learners") or [{**summary, "seed": run.config.seed}]
    known = {*names.values(), "learner", "seed", "rows_to_hold", "learning_stability",
             "diverged_at_chunk", "skipped_gradient_steps"}  # fmt: skip
    rows = []
    for learner in learners:
        swept = {name: learner[name] for name in learner if name not in known}
        row = {**common, "seed": learner["seed"], "swept": swept if "learners" in summary else {}}
        rows.append({**row, **{name: learner.get(field) for name, field in names.items()}})
    return rows


def _results(files: Sequence[RunFiles]) -> str:
    rows = [row for run in files for row in _learners(run)]
    if not rows:
        return "<p>No run is finished.</p>"
    rows.sort(key=lambda row: -(row["best"] if row["best"] is not None else float("-inf")))
    swept = list(dict.fromkeys(name for row in rows for name in row["swept"]))
    head = ["run", "seed", *swept, "return at the end", "best", "solved after", "held after"]
    cells = [
        [
            row["run"],
            str(row["seed"]),
            *(number(row["swept"].get(name), "g") for name in swept),
            number(row["last"], ".2f"),
            number(row["best"], ".2f"),
            _seconds(row["solved"]),
            _seconds(row["held"]),
        ]
        for row in rows[:_MOST_ROWS]
    ]
    left = len(rows) - len(cells)
    more = f"<p>and {left} more, in the summaries</p>" if left else ""
    text = "Returns are means over greedy evaluation episodes."
    thresholds = {run.config.solve_return for run in files} - {None}
    if thresholds:
        text += f" Solved: {', '.join(f'{value:g}' for value in thresholds)}, on fresh episodes."
    return table(head, cells, numeric_from=1) + more + f"<p class='note'>{text}</p>"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _curve_caption(alone: bool) -> str:
    if alone:
        return "Return in training, with exploration, and in greedy evaluations."
    return (
        "Greedy evaluations: interquartile mean over the seeds of each configuration, with a 95 % "
        "bootstrap interval (Agarwal et al. 2021). A run that has ended keeps its last return."
    )


def _reproduce(files: Sequence[RunFiles]) -> str:
    """Return the commands that reproduce the runs, with their configurations."""
    lines = [f"# with jaxdqn {_version(files[0])} installed"]
    links = []
    for run in files:
        name = f"{run.name}.json"
        data = base64.b64encode((run.path / CONFIG).read_bytes()).decode()
        links.append(
            f"<a download='{escape(name)}' href='data:application/json;base64,{data}'>"
            f"{escape(name)}</a>"
        )
        lines += lines_of(run)
    return (
        f"<p>Configurations in this page: {', '.join(links)}</p>{code(lines)}"
        "<p class='note'>The same versions on the same kind and number of devices give the same "
        "results; on a GPU with --deterministic.</p>"
    )
