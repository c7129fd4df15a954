"""Write the tables of results pages from studies: ``python -m benchmarks.results_pages``.

A page marks the place of the table of a study by two lines:

    <!-- study: minatar -->
    <!-- end of study -->

The command replaces the text between them by the tables of ``benchmarks/results/minatar``: the
interquartile mean with its interval, every seed, seconds and versions; and the seconds to the
published scores, if the records have them. A row has the seeds of one configuration.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdqn.cli.flags import parse, run_command

RESULTS = Path("benchmarks") / "results"
_BLOCK = re.compile(
    r"^<!-- study: (?P<name>[\w.-]+) -->\n.*?^<!-- end of study -->$", re.MULTILINE | re.DOTALL
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    pages: tuple[str, ...] = ()
    """Pages to write; by default those in docs/results that name a study."""
    check: bool = False
    """Write nothing, and fail if a page differs from the results."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.results_pages", description=__doc__)
    pages = [Path(page) for page in flags.pages] or sorted(Path("docs/results").glob("*.md"))
    for page in pages:
        if not page.is_file():
            raise ValueError(f"pages='{page}': must be a file")
        before = page.read_text(encoding="utf-8")
        after, names = replaced(before)
        if flags.pages and not names:
            raise ValueError(f"pages='{page}': must have a line '<!-- study: NAME -->'")
        if flags.check and after != before:
            raise ValueError(f"pages='{page}': must be written again by "
                             "python -m benchmarks.results_pages")  # fmt: skip
        if not flags.check and names:
            page.write_text(after, encoding="utf-8")
            print(f"{page}: {', '.join(names)}")


def replaced(text: str) -> tuple[str, list[str]]:
    """Return a page with updated tables, and the names of the studies in it.

    Raises:
        ValueError: if a study has no results.
    """
    names: list[str] = []

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        names.append(name)
        content = study_table(read(RESULTS / name / "results.jsonl"), name)
        return f"<!-- study: {name} -->\n{content}\n<!-- end of study -->"

    return _BLOCK.sub(block, text), names


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a study, one for each seed."""
    if not path.is_file():
        raise ValueError(f"study='{path.parent.name}': must have results in {path}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def study_table(records: Sequence[dict[str, Any]], name: str) -> str:
    """Return the tables of a study: a row for each configuration, in the order of the records."""
    from benchmarks.report import format_markdown

    cells = cells_of(records)
    header = ("game", "preset", "final: IQM [95 % interval]", "final, each seed",
              "best, each seed", "exploring, mean", "distinct episodes", "env steps",
              "training s", "seeds at once")  # fmt: skip
    rows = []
    for env, label, seeds in cells:
        finals = [record["final_return"] for record in seeds]
        exploring = [record["training_return"] for record in seeds]
        # Seeds that were trained together in one program share its seconds.
        seconds = {record["train_seconds"] for record in seeds}
        together = max(record.get("population", 1) for record in seeds)
        rows.append(
            (env.removesuffix("-MinAtar"), f"`{label}`", interquartile(finals), _each(finals),
             _each([record["best_return"] for record in seeds]),
             _number(None if None in exploring else sum(exploring) / len(seeds)),
             " ".join(str(record.get("distinct_episodes") or "-") for record in seeds),
             f"{max(record['env_steps'] for record in seeds):,}",
             " ".join(f"{value:,.0f}" for value in sorted(seconds)), together)
        )  # fmt: skip
    about = f"{versions(records)}.{_shared(records)} Every record: `{RESULTS}/{name}/`."
    parts = [format_markdown(header, rows), _wall_clock(cells), about]
    return "\n\n".join(part for part in parts if part)


Cell = tuple[str, str, list[dict[str, Any]]]
"""Environment, label, and records in the order of seeds."""


def cells_of(records: Sequence[dict[str, Any]]) -> list[Cell]:
    """Return the records by configuration, in the order of their first record.

    Labels are as in the report of ``jaxdqn study``: the preset, and the settings that distinguish
    it from others of the same preset.
    """
    from jaxdqn.cli.study.cells import key_of_result
    from jaxdqn.cli.study.report import rows_of

    named = {
        entry.key: (entry.env, label, list(entry.results))
        for label, row in rows_of(_entries(records)).items()
        for entry in row.values()
    }
    return [named[key] for key in dict.fromkeys(map(key_of_result, records))]


def _entries(records: Sequence[dict[str, Any]]) -> list[Any]:
    from jaxdqn.cli.study.report import Request, entries_of

    return entries_of(records, Request([], range(0), out=""))


def _shared(records: Sequence[dict[str, Any]]) -> str:
    """Return the settings that all cells have in common as a sentence."""
    from jaxdqn.cli.study.report import shared_settings
    from jaxdqn.cli.study.settings import as_text

    shared = shared_settings(_entries(records))
    texts = [f"`{name}={as_text(value)}`" for name, value in shared.items()]
    return f" Common settings: {', '.join(texts)}." if texts else ""


def _wall_clock(cells: Sequence[Cell]) -> str:
    """Return the table of the seconds to the published scores; empty without any."""
    from jaxdqn.cli.study.wall_clock import wall_clock

    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for env, label, seeds in cells:
        rows.setdefault(f"`{label}`", {})[env] = seeds
    return wall_clock(rows, dict.fromkeys(env for env, _, _ in cells))


def _each(values: Sequence[float | None]) -> str:
    return " ".join(map(_number, values))


def _number(value: float | None) -> str:
    """Format a return; None stands for a return that was not finite or not recorded."""
    return "-" if value is None else f"{value:.1f}"


def interquartile(values: Sequence[float | None]) -> str:
    """Return the interquartile mean of seeds and its bootstrap interval as text."""
    from jaxdqn.monitoring.statistics import estimate

    if None in values:
        return "a seed is not finite"
    found = estimate([value for value in values if value is not None])
    return f"{found.iqm:.1f} [{found.low:.1f}, {found.high:.1f}]"


def versions(records: Sequence[dict[str, Any]]) -> str:
    """Return the devices and the versions of JAX of a study as text."""
    devices = sorted({str(record.get("device_kind")) for record in records})
    found = sorted({record["versions"]["jax"] for record in records if "versions" in record})
    return f"{', '.join(devices)}; JAX {', '.join(found) or 'of unknown version'}"


if __name__ == "__main__":
    sys.exit(main())
