"""Records of measured techniques: the JSON of ``jaxdqn compare``, and its reuse by later runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import short

if TYPE_CHECKING:
    from benchmarks.techniques.registry import Result, Technique

DESCRIPTION = {
    "principle": "principle",
    "source": "source",
    "claimed": "claimed",
    "advantages": "advantages",
    "drawbacks": "drawbacks",
    "when": "when to use",
    "measured_on": "measured on",
}
"""Titles of the fields of a technique that describe it."""

_SAME = ("device_kind", "processor", "cores", "python", "versions", "commit")
"""Parts of a stamp that must be equal for two measurements in one table."""

Record = dict[str, Any]


def described(technique: Technique) -> Record:
    """Return the record of a technique without its results."""
    fields = {title: getattr(technique, field) for field, title in DESCRIPTION.items()}
    return {"technique": technique.name, **fields}


def read_report(path: str | Path) -> dict[str, Any]:
    """Read the JSON of ``jaxdqn compare``.

    Raises:
        ValueError: if the file is not of this kind.
    """
    try:
        report = json.loads(Path(path).read_text())
        if {"stamp", "effort", "techniques"} <= set(report):
            return report
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: must be a file of jaxdqn compare --json ({error})") from None
    raise ValueError(f"{path}: must be a file of jaxdqn compare --json")


def finished(path: str | Path, stamp: Mapping[str, Any], effort: Any) -> dict[str, Record]:
    """Return the records of a file that a run on this machine need not measure again, by name.

    Skipped techniques are not included.

    Args:
        path: file of an earlier run.
        stamp: stamp of this run.
        effort: amount of measurement of this run.

    Raises:
        ValueError: if the machine, version, commit or effort differs, because the results would not
            be comparable.
    """
    report = read_report(path)
    before, now = report["stamp"], dict(stamp)
    for field in _SAME:
        if before.get(field) != now[field]:
            raise ValueError(
                f"resume={str(path)!r}: must be of the same {field}, {now[field]!r}, not "
                f"{before.get(field)!r}; give --fresh to measure all again"
            )
    if report["effort"] != effort._asdict():
        raise ValueError(
            f"resume={str(path)!r}: must be measured with the same --quick; give --fresh to "
            "measure all again"
        )
    return {each["technique"]: each for each in report["techniques"] if "skipped" not in each}


def verdict(speed_up: Mapping[str, float]) -> str:
    """Classify a speed-up by its interval."""
    if speed_up["low"] > 1:
        return "faster here"
    return "slower here" if speed_up["high"] < 1 else "no difference shown"


def result_record(result: Result) -> Record:
    """Return a result in its JSON form, with its verdict."""
    speed_up = result.speed_up._asdict()
    return {**result._asdict(), "speed_up": speed_up, "verdict": verdict(speed_up)}


def summary(record: Mapping[str, Any]) -> str:
    """Summarise the result of a technique: the range over its cases, and the verdict."""
    if "skipped" in record:
        return f"not measured: {record['skipped']}"
    speed_ups = [each["speed_up"] for each in record["results"]]
    verdicts = list(dict.fromkeys(map(verdict, speed_ups)))
    medians = [each["median"] for each in speed_ups]
    span = (
        short(medians[0])
        if len(medians) == 1
        else f"{short(min(medians))} to {short(max(medians))}"
    )
    return f"{span} ({' or '.join(verdicts)})"


def merged(order: Sequence[str], *groups: Mapping[str, Record]) -> list[Record]:
    """Merge groups of records in the given order; of equal names the first group is used."""
    found: dict[str, Record] = {}
    for group in reversed(groups):
        found |= group
    names = [name for name in order if name in found]
    return [found[name] for name in (*names, *(name for name in found if name not in order))]
