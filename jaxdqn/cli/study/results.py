"""Results of a study: one line of ``results.jsonl`` per preset, environment and seed.

Imports no JAX.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdqn.cli.study.cells import Cell, key_of, key_of_result
from jaxdqn.cli.study.settings import EXECUTION_FIELDS
from jaxdqn.config.config import Config, to_dict
from jaxdqn.config.former_names import current_names
from jaxdqn.errors import RunFailed
from jaxdqn.storage.directory import SUMMARY, read_config
from jaxdqn.storage.jsonl import FILES, Record, read_lines, to_json

RESULTS = "results.jsonl"
REPORT = "report.md"

_NUMBER = (int, float)
_NUMBER_OR_NONE = (int, float, type(None))
_FIELDS: dict[str, Any] = {
    "preset": str, "env": str, "seed": int, "total_rows": int, "settings": dict,
    "config_hash": str, "config": dict, "versions": dict, "device_kind": str, "devices": int,
    "max_episode_steps": (int, type(None)), "eval_episodes": int, "curve": dict,
    "final_return": _NUMBER_OR_NONE, "best_return": _NUMBER_OR_NONE,
    "diverged_at_chunk": (int, type(None)), "run": str, "population": int,
    "train_seconds": _NUMBER, "eval_seconds": _NUMBER, "compile_seconds": _NUMBER,
    "env_steps_per_second": _NUMBER, "gradient_steps_per_second": _NUMBER,
}  # fmt: skip
"""Fields of a result and their types.

``curve`` has ``rows``, counted for this seed, ``return_mean``, null where it was not finite, and
``seconds``, of training and evaluation, which results of earlier versions lack. Seeds trained
together share their seconds.
``run`` and the fields after it describe the complete run, of ``population`` seeds; ``env_steps`` is
the mean per seed. ``distinct_episodes`` is that of the last evaluation.
"""
_OPTIONAL_FIELDS: dict[str, Any] = {
    "training_return": _NUMBER_OR_NONE, "env_steps": int, "distinct_episodes": (int, type(None)),
    "parts": dict,
}  # fmt: skip
"""Fields that results of earlier versions lack. ``parts`` has the references to custom parts, and
is left out if there are none."""


class StoredResults(NamedTuple):
    """Content of a results file."""

    results: list[Record]
    valid_bytes: int
    """Bytes up to the end of the last complete line."""
    size: int
    """Bytes of the file."""
    ends_with_newline: bool
    """False if the last complete line lacks its line break."""


def read_results(file: Path) -> StoredResults:
    """Read a results file. A truncated last line is ignored; a missing file has no results.

    Raises:
        ValueError: if a line is damaged or repeats another; the message names the line.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return StoredResults([], 0, 0, True)
    except OSError as error:
        raise ValueError(f"results={str(file)!r}: must be readable: {error.strerror}") from error
    *lines, rest = data.split(b"\n")
    valid_bytes, ends_with_newline = len(data) - len(rest), True
    with contextlib.suppress(ValueError):
        _parse_result(rest)
        # The last line is complete except for its line break, which an editor may omit.
        valid_bytes, ends_with_newline = len(data), False
        lines.append(rest)
    return StoredResults(_parse_lines(file, lines), valid_bytes, len(data), ends_with_newline)


def _parse_lines(file: Path, lines: Sequence[bytes]) -> list[Record]:
    """Parse the lines of a results file, and check that each cell and seed occurs once."""
    results: list[Record] = []
    line_of: dict[tuple[str, int], int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            result = _parse_result(line)
        except ValueError as error:
            raise ValueError(
                f"results={str(file)!r}: must contain valid results; line {number}: {error}"
            ) from error
        identity = (key_of_result(result), result["seed"])
        if identity in line_of:
            raise ValueError(
                f"results={str(file)!r}: must contain each result once; line {number} has the same "
                f"cell and seed as line {line_of[identity]}"
            )
        line_of[identity] = number
        results.append(result)
    return results


def repair(file: Path, stored: StoredResults) -> str | None:
    """Make a results file end with a complete line; return a message if it was changed.

    Raises:
        RunFailed: if the file cannot be written.
    """
    try:
        if stored.valid_bytes < stored.size:
            os.truncate(file, stored.valid_bytes)
            return f"{file}: the last line was truncated and is removed"
        if not stored.ends_with_newline:
            with file.open("ab") as opened:
                opened.write(b"\n")
    except OSError as error:
        raise RunFailed(f"{file}: {error.strerror}") from error
    return None


def append_results(file: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Append all results or none, and return when they are on disk.

    Raises:
        RunFailed: if the file cannot be written.
    """
    data = "".join(to_json(dict(result)) + "\n" for result in results).encode()
    try:
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(handle).st_size
            try:
                if os.write(handle, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise RunFailed(
            f"{file}: {error.strerror}; the trained runs are kept, repeat the command to record "
            "their results"
        ) from error


def done_seeds(cell: Cell, results: Sequence[Record]) -> set[int]:
    """Return the seeds of a cell that have results."""
    key = cell.key
    return {result["seed"] for result in results if key_of_result(result) == key}


def results_of(directory: Path, cell: Cell, max_episode_steps: int | None) -> list[Record]:
    """Return the results of a finished run, one per seed.

    Args:
        directory: directory of the run.
        cell: cell that the run belongs to.
        max_episode_steps: environment steps after which its episodes are truncated.

    Raises:
        ValueError: if the files of the run cannot be read.
    """
    config = read_config(directory)
    try:
        summary = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
        records = read_lines(directory / FILES["evaluation"])
        evaluations = [record for record in records if record["purpose"] == "evaluate"]
        chunks = read_lines(directory / FILES["metrics"])
        common = _common_fields(directory.name, config, summary, cell, max_episode_steps)
        single = {**summary, "diverged_at_chunk": None}
        return [
            {
                **common,
                "seed": learner["seed"],
                "final_return": learner["eval_return_mean"],
                "best_return": learner["best_eval_return_mean"],
                "training_return": _training_return(chunks, index, config.learners),
                "distinct_episodes": _distinct_episodes(evaluations[-1], index, config.learners),
                "diverged_at_chunk": learner["diverged_at_chunk"],
                "curve": _curve(evaluations, index, config.learners),
            }
            for index, learner in enumerate(summary.get("learners") or [single])
        ]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"run={str(directory)!r}: must be a finished run; move it elsewhere to train its seeds "
            f"again: {error!r}"
        ) from error


def _common_fields(
    name: str, config: Config, summary: Record, cell: Cell, max_episode_steps: int | None
) -> Record:
    """Return the fields that the results of all seeds of a run share."""
    fields = {
        field: value for field, value in to_dict(config).items() if field not in EXECUTION_FIELDS
    }
    copied = ("versions", "device_kind", "devices", "eval_episodes", "train_seconds",
              "eval_seconds", "compile_seconds", "env_steps_per_second",
              "gradient_steps_per_second")  # fmt: skip
    return {
        "preset": cell.preset,
        "env": config.env,
        "total_rows": config.total_rows,
        "settings": cell.settings,
        "config_hash": key_of(cell.preset, fields, cell.parts),
        "config": fields,
        **({"parts": dict(cell.parts)} if cell.parts else {}),
        "max_episode_steps": max_episode_steps,
        "run": name,
        "population": config.learners,
        "env_steps": summary["env_steps"] // config.learners,
        **{field: summary[field] for field in copied},
    }


def _curve(evaluations: Sequence[Record], index: int, learners: int) -> Record:
    """Return the learning curve of one learner.

    The records count rows over all learners, which have equal numbers of rows.
    """
    returns = [
        record["learners"][index] if learners > 1 else record["return_mean"]
        for record in evaluations
    ]
    curve: Record = {
        "rows": [record["rows"] // learners for record in evaluations],
        "return_mean": returns,
    }
    if all("seconds" in record for record in evaluations):
        curve["seconds"] = [record["seconds"] for record in evaluations]
    return curve


def _distinct_episodes(evaluation: Record, index: int, learners: int) -> int | None:
    """Return the number of different episodes of one learner in an evaluation.

    None if the evaluation is from an earlier version, which did not count them.
    """
    if learners == 1:
        return evaluation.get("distinct_episodes")
    counts = evaluation.get("learners_distinct_episodes")
    return None if counts is None else counts[index]


def _training_return(chunks: Sequence[Record], index: int, learners: int) -> float | None:
    """Return the mean training return of one learner over the last tenth of its rows.

    These episodes explore with the final epsilon, as in most published curves of MinAtar.
    """
    last_tenth = [chunk for chunk in chunks if chunk["rows"] > 0.9 * chunks[-1]["rows"]]
    means = [
        chunk["learners"]["return_mean"][index] if learners > 1 else chunk["return_mean"]
        for chunk in last_tenth
    ]
    # A chunk in which no episode ended has no mean.
    known = [mean for mean in means if mean is not None]
    return sum(known) / len(known) if known else None


def _parse_result(line: bytes) -> Record:
    """Parse and check a line.

    Raises:
        ValueError: if it is not a result.
    """
    try:
        result = json.loads(line)
    except ValueError:
        raise ValueError("not valid JSON") from None
    if not isinstance(result, dict):
        raise ValueError("not a JSON object")
    result = current_names(result)
    for name, kind in (_FIELDS | _OPTIONAL_FIELDS).items():
        if name not in result and name in _OPTIONAL_FIELDS:
            continue
        if name not in result:
            raise ValueError(f"{name} is missing")
        value = result[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: wrong type")
    _check_curve(result["curve"])
    return {**result, "config": current_names(result["config"])}


def _check_curve(curve: Record) -> None:
    rows, returns = (curve.get(name) for name in ("rows", "return_mean"))
    if not isinstance(rows, list) or not isinstance(returns, list) or len(rows) != len(returns):
        raise ValueError("curve must have as many rows as return_mean")
    if not all(isinstance(x, _NUMBER) for x in rows):
        raise ValueError("curve.rows must be numbers")
    if not all(isinstance(x, _NUMBER_OR_NONE) for x in returns):
        raise ValueError("curve.return_mean must be numbers")
    seconds = curve.get("seconds", rows)
    if not isinstance(seconds, list) or len(seconds) != len(rows):
        raise ValueError("curve must have as many seconds as rows")
    if not all(isinstance(x, _NUMBER) for x in seconds):
        raise ValueError("curve.seconds must be numbers")
