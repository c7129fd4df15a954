"""The report of a study: a table of final returns, each seed's, and what the runs took.

The interquartile means and intervals follow the protocol of rliable (Agarwal et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdqn.cli.study.cells import Cell, key_of
from jaxdqn.cli.study.curves import CURVES, draw_curves
from jaxdqn.cli.study.results import REPORT
from jaxdqn.cli.study.settings import as_text, command_of, label, seeds_text
from jaxdqn.cli.study.statistics import estimate
from jaxdqn.storage.jsonl import Record

_SEED_NOTE = (
    "Greedy, in the last and in the best evaluation; and exploring, as the training episodes of "
    "the last tenth of the rows were."
)
_TIME_NOTE = (
    "Wall-clock seconds of training and evaluation, of all the seeds of a run together; "
    "compilation, of the run's last start, comes on top. Steps are counted over all its seeds."
)


class Entry(NamedTuple):
    """A cell with what is known of it."""

    preset: str
    env: str
    settings: Mapping[str, Any]
    total_rows: int
    key: str
    results: Sequence[Record]
    """Of one seed each, ascending."""
    missing: Sequence[int]
    """Seeds that are asked for and have no result, ascending."""


class Asked(NamedTuple):
    """What a study is asked to have."""

    cells: Sequence[Cell]
    seeds: range
    out: str
    """Directory of the study."""
    seeds_at_once: int | None = None
    elsewhere: Mapping[str, Any] = {}
    """Settings that do not make a cell another one; commands repeat them."""


def write_report(results: Sequence[Record], asked: Asked) -> None:
    """Write ``report.md`` and ``curves.png`` into the directory of a study.

    Raises:
        ValueError: if there is nothing to report, or it cannot be written.
    """
    entries = entries_of(results, asked)
    if not entries:
        raise ValueError(f"out={asked.out!r}: must have results, or cells must be asked for")
    out = Path(asked.out)
    curves = {
        name: {env: entry.results for env, entry in row.items()}
        for name, row in rows_of(entries).items()
    }
    draw_curves(curves, _envs(entries), out / CURVES)
    try:
        (out / REPORT).write_text(markdown(entries, asked), encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"out={str(out / REPORT)!r}: must be writable: {error.strerror}"
        ) from error


def entries_of(results: Sequence[Record], asked: Asked) -> list[Entry]:
    """Return the cells that are asked for, then those which only the results know."""
    by_key: dict[str, list[Record]] = {}
    for result in sorted(results, key=lambda result: result["seed"]):
        by_key.setdefault(key_of(result["preset"], result["config"]), []).append(result)
    entries = []
    for cell in asked.cells:
        found = by_key.pop(cell.key, [])
        missing = sorted(set(asked.seeds) - {result["seed"] for result in found})
        about = (cell.preset, cell.env, cell.settings, cell.config.total_rows, cell.key)
        entries.append(Entry(*about, found, missing))
    for key, found in by_key.items():
        names = ("preset", "env", "settings", "total_rows")
        preset, env, settings, steps = (found[0][name] for name in names)
        entries.append(Entry(preset, env, settings, steps, key, found, []))
    return entries


def rows_of(entries: Sequence[Entry]) -> dict[str, dict[str, Entry]]:
    """Return the rows of the table: by label, the entry of each environment.

    A label tells no more than it must: not the settings that all have, and the budget, and then
    the configuration's hash, only where a preset with its settings is there more than once on an
    environment.
    """
    shared = shared_settings(entries)
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        own = {name: value for name, value in entry.settings.items() if name not in shared}
        alike.setdefault(label(entry.preset, own), []).append(entry)
    rows: dict[str, dict[str, Entry]] = {}
    for members in alike.values():
        # The same of all members.
        own = {name: value for name, value in members[0].settings.items() if name not in shared}
        for detail in range(3):
            split: dict[str, dict[str, Entry]] = {}
            for entry in members:
                more = (f"total_rows={entry.total_rows}", f"configuration {entry.key}")[:detail]
                name = label(entry.preset, own, *more)
                split.setdefault(name, {}).setdefault(entry.env, entry)
            if sum(map(len, split.values())) == len(members):
                break
        rows |= split
    return rows


def shared_settings(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the settings that all entries have."""
    first, *others = (entry.settings for entry in entries)
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def markdown(entries: Sequence[Entry], asked: Asked) -> str:
    """Return the report as Markdown."""
    rows, envs = rows_of(entries), _envs(entries)
    table = [[name, *(_cell(env, row, asked) for env in envs)] for name, row in rows.items()]
    counts = " or ".join(map(str, sorted(_values(entries, "eval_episodes"))))
    episodes = f"{counts} greedy episodes" if counts else "greedy episodes"
    each = [_seeds(name, entry, asked) for name, row in rows.items() for entry in row.values()]
    parts = [
        "# Study",
        "Return at the end of training: the interquartile mean over seeds [its 95 % bootstrap "
        "interval]. The return of a seed is the undiscounted mean over the "
        f"{episodes} of its last evaluation.{_shared(entries)}",
        _table(["", *(_column(env, entries) for env in envs)], table),
        _protocol(entries, envs),
        f"![Learning curves]({CURVES})",
        "## Each seed",
        _SEED_NOTE,
        "\n".join(each),
        "## Time",
        _times(rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(env: str, row: Mapping[str, Entry], asked: Asked) -> str:
    """Return a cell of the table of returns."""
    entry = row.get(env)
    if entry is None or not entry.results:
        return f"not run: `{_command(env, row if entry is None else {env: entry}, asked)}`"
    returns = _numbers(entry.results, "final_return")
    if not returns:
        return f"no return ({_count(len(entry.results))})"
    middle, low, high = estimate(returns)
    interval = f" [{low:.2f}, {high:.2f}]" if len(returns) > 1 else ""
    return f"{middle:.2f}{interval} ({_count(len(returns))})"


def _command(env: str, row: Mapping[str, Entry], asked: Asked) -> str:
    """Return the command that runs on ``env`` what is missing there, or was run on the others."""
    like = next(iter(row.values()))
    steps = {entry.total_rows for entry in row.values()}
    seeds = {seed for entry in row.values() for seed in (entry.missing or _seeds_of(entry))}
    return command_of(
        like.preset,
        env,
        # Those between them that have results are passed over.
        range(min(seeds), max(seeds) + 1),
        {**like.settings, **asked.elsewhere},
        out=asked.out,
        total_rows=steps.pop() if len(steps) == 1 else None,
        seeds_at_once=asked.seeds_at_once,
    )


def _seeds(name: str, entry: Entry, asked: Asked) -> str:
    """Return the values of a cell, one for each seed, and what of it is not run."""
    lines = [f"- {name}, {entry.env}, {entry.total_rows:,} rows"]
    returns = _numbers(entry.results, "final_return")
    if returns:
        lines[0] += f": mean {sum(returns) / len(returns):.2f}"
    for result in entry.results:
        final, best = (_number(result[when]) for when in ("final_return", "best_return"))
        line = f"  - seed {result['seed']}: {final}, at best {best}"
        if result.get("training_return") is not None:
            line += f", exploring {result['training_return']:.2f}"
        if result["diverged_at_chunk"] is not None:
            line += f"; diverged in chunk {result['diverged_at_chunk']}"
        lines.append(line)
    if entry.missing:
        command = _command(entry.env, {entry.env: entry}, asked)
        lines.append(f"  - {seeds_text(entry.missing)} not run: `{command}`")
    return "\n".join(lines)


def _protocol(entries: Sequence[Entry], envs: Sequence[str]) -> str:
    """Return which episodes the returns are of."""
    lines, cut = [], False
    for env in envs:
        for limit in _limits(env, entries):
            lines.append(f"- {env}: an episode ends after at most {limit:,} environment steps.")
            cut |= env.endswith("-MinAtar")
    if not lines:
        return ""
    text = "Episodes are gymnax's, with its time limits:\n\n" + "\n".join(lines)
    if cut:
        text += (
            "\n\ngymnax cuts the episodes of MinAtar: these returns do not compare with those of "
            "episodes under another limit, or none."
        )
    return text


def _times(rows: Mapping[str, Mapping[str, Entry]]) -> str:
    """Return a table of what each run took."""
    head = ("preset", "environment", "seeds together", "seconds", "of which training",
            "compilation", "environment steps/s", "gradient steps/s", "on")  # fmt: skip
    lines = []
    for name, row in rows.items():
        for entry in row.values():
            runs = {result["run"]: result for result in entry.results}
            lines += [[name, entry.env, *_time(run)] for run in runs.values()]
    return f"{_TIME_NOTE}\n\n{_table(head, lines)}" if lines else "Nothing has run."


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
    return f" All are with {', '.join(texts)}." if texts else ""


def _column(env: str, entries: Sequence[Entry]) -> str:
    limits = " or ".join(f"{limit:,}" for limit in _limits(env, entries))
    return f"{env} (episodes of at most {limits} steps)" if limits else env


def _limits(env: str, entries: Iterable[Entry]) -> list[int]:
    """Return the time limits, in environment steps, of the episodes on an environment."""
    limits = _values([entry for entry in entries if entry.env == env], "max_episode_steps")
    return sorted(limit for limit in limits if limit is not None)


def _envs(entries: Iterable[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.env for entry in entries))


def _values(entries: Iterable[Entry], name: str) -> set[Any]:
    return {result[name] for entry in entries for result in entry.results}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _numbers(results: Sequence[Record], name: str) -> list[float]:
    return [result[name] for result in results if result[name] is not None]


def _seeds_of(entry: Entry) -> list[int]:
    return [result["seed"] for result in entry.results]


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' if seeds > 1 else ''}"


def _number(value: float | None) -> str:
    return "no return" if value is None else f"{value:.2f}"
