"""Report of a study: final returns as a table and per seed, learning curves, and run times.

Interquartile means and intervals follow the protocol of rliable (Agarwal et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdqn.cli.study.cells import Cell, key_of_result, shown_parts
from jaxdqn.cli.study.curves import CURVES, draw_curves
from jaxdqn.cli.study.protocol import column, protocol
from jaxdqn.cli.study.results import REPORT
from jaxdqn.cli.study.settings import as_text, command_of, label, seeds_text
from jaxdqn.cli.study.wall_clock import markdown_table, shared_seconds, wall_clock
from jaxdqn.monitoring.statistics import estimate
from jaxdqn.storage.jsonl import Record

_SEED_NOTE = (
    "Final and best: mean return of the last and of the best greedy evaluation. Exploring: mean "
    "return of the training episodes in the last tenth of the rows."
)
_TIME_NOTE = (
    "Wall-clock seconds of training and evaluation, over all seeds of a run. They do not include "
    "the compilation time, which is given for the last start of the run. Steps are counted over "
    "all seeds."
)


class Entry(NamedTuple):
    """A cell with its results."""

    preset: str
    env: str
    settings: Mapping[str, Any]
    total_rows: int
    key: str
    results: Sequence[Record]
    """One per seed, in ascending order of seeds."""
    missing: Sequence[int]
    """Requested seeds without a result, ascending."""
    parts: Mapping[str, str] = {}
    """References to custom parts."""

    @property
    def shown(self) -> dict[str, Any]:
        """Settings and custom parts that labels show."""
        return {**self.settings, **shown_parts(self.parts)}


class Request(NamedTuple):
    """The requested cells and seeds, and the flags that commands in the report repeat."""

    cells: Sequence[Cell]
    seeds: range
    out: str
    """Directory of the study."""
    seeds_at_once: int | None = None
    execution: Mapping[str, Any] = {}
    """Settings among ``EXECUTION_FIELDS``, which do not identify a cell."""
    environments: Mapping[str, str] = {}
    """References to custom environments, by the name of the environment."""


def write_report(results: Sequence[Record], request: Request) -> None:
    """Write ``report.md`` and ``curves.png`` into the directory of a study.

    Raises:
        ValueError: if there is nothing to report or a file cannot be written.
    """
    entries = entries_of(results, request)
    if not entries:
        raise ValueError(f"out={request.out!r}: must contain results; or name presets and envs")
    own = {e.env: e.parts["environment"] for e in entries if "environment" in e.parts}
    request = request._replace(environments=own)
    out = Path(request.out)
    draw_curves(_results(rows_of(entries)), _envs(entries), out / CURVES)
    try:
        (out / REPORT).write_text(markdown(entries, request), encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"out={str(out / REPORT)!r}: must be writable: {error.strerror}"
        ) from error


def entries_of(results: Sequence[Record], request: Request) -> list[Entry]:
    """Return the requested cells, then the cells that occur only in the results."""
    by_key: dict[str, list[Record]] = {}
    for result in sorted(results, key=lambda result: result["seed"]):
        by_key.setdefault(key_of_result(result), []).append(result)
    entries = []
    for cell in request.cells:
        found = by_key.pop(cell.key, [])
        missing = sorted(set(request.seeds) - {result["seed"] for result in found})
        identity = (cell.preset, cell.env, cell.settings, cell.config.total_rows, cell.key)
        entries.append(Entry(*identity, found, missing, cell.parts))
    for key, found in by_key.items():
        names = ("preset", "env", "settings", "total_rows")
        preset, env, settings, total_rows = (found[0][name] for name in names)
        parts = found[0].get("parts", {})
        entries.append(Entry(preset, env, settings, total_rows, key, found, [], parts))
    return entries


def rows_of(entries: Sequence[Entry]) -> dict[str, dict[str, Entry]]:
    """Return the rows of the table: entries by label and environment.

    Labels are as short as possible. They omit the settings shared by all entries. They add the
    number of rows, then the reference to a custom environment, and then the configuration's hash,
    only where a preset with its settings occurs more than once on an environment.
    """
    shared = shared_settings(entries)

    def label_of(entry: Entry, *details: str) -> str:
        own = {name: value for name, value in entry.shown.items() if name not in shared}
        return label(entry.preset, own, *details)

    same_label: dict[str, list[Entry]] = {}
    for entry in entries:
        same_label.setdefault(label_of(entry), []).append(entry)
    rows: dict[str, dict[str, Entry]] = {}
    for members in same_label.values():
        for detail in range(4):
            split: dict[str, dict[str, Entry]] = {}
            for entry in members:
                details = _details(entry)[:detail]
                split.setdefault(label_of(entry, *details), {}).setdefault(entry.env, entry)
            # setdefault drops an entry whose label is taken; check that none was dropped.
            if sum(map(len, split.values())) == len(members):
                break
        rows |= split
    return rows


def _details(entry: Entry) -> list[str]:
    """Return the details that distinguish entries with the same label, the simplest first."""
    environment = entry.parts.get("environment")
    return [
        f"total_rows={entry.total_rows}",
        *([] if environment is None else [f"environment={environment}"]),
        f"configuration {entry.key}",
    ]


def shared_settings(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the settings and custom parts shared by all entries."""
    first, *others = (entry.shown for entry in entries)
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def markdown(entries: Sequence[Entry], request: Request) -> str:
    """Return the report as Markdown."""
    rows, envs = rows_of(entries), _envs(entries)
    results = [result for entry in entries for result in entry.results]
    table = [[name, *(_cell(env, row, request) for env in envs)] for name, row in rows.items()]
    counts = " or ".join(map(str, sorted(_values(entries, "eval_episodes"))))
    episodes = f"{counts} greedy episodes" if counts else "greedy episodes"
    seeds = [_seeds(name, entry, request) for name, row in rows.items() for entry in row.values()]
    parts = [
        "# Study",
        "Return at the end of training: interquartile mean over seeds [95 % bootstrap interval]. "
        "The return of a seed is the mean undiscounted return of the "
        f"{episodes} of its last evaluation.{_shared(entries)}",
        markdown_table(["", *(column(env, results) for env in envs)], table),
        protocol(envs, results),
        f"![Learning curves]({CURVES})",
        *_wall_clock(rows, envs),
        "## Each seed",
        _SEED_NOTE,
        "\n".join(seeds),
        "## Time",
        _times(rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _wall_clock(rows: Mapping[str, Mapping[str, Entry]], envs: Sequence[str]) -> list[str]:
    """Return the section about the seconds to the published scores; empty without any."""
    text = wall_clock(_results(rows), envs)
    return ["## Wall-clock to the published score", text] if text else []


def _results(rows: Mapping[str, Mapping[str, Entry]]) -> dict[str, dict[str, Sequence[Record]]]:
    """Return the results by label and environment."""
    return {name: {env: entry.results for env, entry in row.items()} for name, row in rows.items()}


def _cell(env: str, row: Mapping[str, Entry], request: Request) -> str:
    """Return one cell of the table of returns."""
    entry = row.get(env)
    if entry is None or not entry.results:
        return f"not run: `{_command(env, row if entry is None else {env: entry}, request)}`"
    returns = _numbers(entry.results, "final_return")
    if not returns:
        return f"no return ({_count(len(entry.results))})"
    middle, low, high = estimate(returns)
    interval = f" [{low:.2f}, {high:.2f}]" if len(returns) > 1 else ""
    return f"{middle:.2f}{interval} ({_count(len(returns))})"


def _command(env: str, row: Mapping[str, Entry], request: Request) -> str:
    """Return the command that trains the missing seeds on ``env``.

    For an environment without an entry, they are the seeds of the other environments of the row.
    """
    example = next(iter(row.values()))
    total_rows = {entry.total_rows for entry in row.values()}
    seeds = {seed for entry in row.values() for seed in (entry.missing or _seeds_of(entry))}
    own = row[env].parts.get("environment") if env in row else request.environments.get(env)
    return command_of(
        example.preset,
        env,
        # The command skips the seeds in this range that have results.
        range(min(seeds), max(seeds) + 1),
        {**example.settings, **request.execution},
        out=request.out,
        total_rows=total_rows.pop() if len(total_rows) == 1 else None,
        seeds_at_once=request.seeds_at_once,
        parts={**({} if own is None else {"environment": own}), **shown_parts(example.parts)},
    )


def _seeds(name: str, entry: Entry, request: Request) -> str:
    """Return the returns of each seed of an entry, and the command for its missing seeds."""
    lines = [f"- {name}, {entry.env}, {entry.total_rows:,} rows"]
    returns = _numbers(entry.results, "final_return")
    if returns:
        lines[0] += f": mean {sum(returns) / len(returns):.2f}"
    for result in entry.results:
        final, best = (_number(result[when]) for when in ("final_return", "best_return"))
        line = f"  - seed {result['seed']}: final {final}, best {best}"
        if result.get("training_return") is not None:
            line += f", exploring {result['training_return']:.2f}"
        if result.get("distinct_episodes") is not None:
            line += f", {result['distinct_episodes']} distinct episodes"
        if result["diverged_at_chunk"] is not None:
            line += f"; diverged in chunk {result['diverged_at_chunk']}"
        lines.append(line)
    if entry.missing:
        command = _command(entry.env, {entry.env: entry}, request)
        lines.append(f"  - {seeds_text(entry.missing)} not run: `{command}`")
    return "\n".join(lines)


def _times(rows: Mapping[str, Mapping[str, Entry]]) -> str:
    """Return a table of the time and speed of each run."""
    head = ("preset", "environment", "seeds per run", "seconds", "of which training",
            "compilation", "environment steps/s", "gradient steps/s", "device")  # fmt: skip
    lines = []
    for name, row in rows.items():
        for entry in row.values():
            runs = {result["run"]: result for result in entry.results}
            lines += [[name, entry.env, *_time(run)] for run in runs.values()]
    notes = " ".join(note for note in (_TIME_NOTE, shared_seconds(_results(rows))) if note)
    return f"{notes}\n\n{markdown_table(head, lines)}" if lines else "No results."


def _time(run: Record) -> list[str]:
    versions = run["versions"]
    named = [f"{name} {versions[name]}" for name in ("jax", "jaxdqn") if name in versions]
    several = f"{run['devices']} x " if run["devices"] > 1 else ""
    return [
        str(run["population"]),
        f"{run['train_seconds'] + run['eval_seconds']:,.1f}",
        f"{run['train_seconds']:,.1f}",
        f"{run['compile_seconds']:,.1f}",
        f"{run['env_steps_per_second']:,.0f}",
        f"{run['gradient_steps_per_second']:,.0f}",
        ", ".join([f"{several}{run['device_kind']}", *named]),
    ]


def _shared(entries: Sequence[Entry]) -> str:
    texts = [f"`{name}={as_text(value)}`" for name, value in shared_settings(entries).items()]
    return f" Common settings: {', '.join(texts)}." if texts else ""


def _envs(entries: Iterable[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.env for entry in entries))


def _values(entries: Iterable[Entry], name: str) -> set[Any]:
    return {result[name] for entry in entries for result in entry.results}


def _numbers(results: Sequence[Record], name: str) -> list[float]:
    return [result[name] for result in results if result[name] is not None]


def _seeds_of(entry: Entry) -> list[int]:
    return [result["seed"] for result in entry.results]


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' if seeds > 1 else ''}"


def _number(value: float | None) -> str:
    return "no return" if value is None else f"{value:.2f}"
