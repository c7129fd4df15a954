"""The results of a study: a line of ``results.jsonl`` for each preset, environment and seed.

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

from jaxdqn.cli.study.cells import Cell, key_of
from jaxdqn.cli.study.settings import PLACE
from jaxdqn.config.config import Config, to_dict
from jaxdqn.errors import RunFailed
from jaxdqn.storage.directory import SUMMARY, read_config
from jaxdqn.storage.jsonl import FILES, Record, read_lines, to_json

RESULTS = "results.jsonl"
REPORT = "report.md"

_NUMBER = (int, float)
_OR_NONE = (int, float, type(None))
_FIELDS: dict[str, Any] = {
    "preset": str, "env": str, "seed": int, "total_rows": int, "settings": dict,
    "config_hash": str, "config": dict, "versions": dict, "device_kind": str, "devices": int,
    "max_episode_steps": (int, type(None)), "eval_episodes": int, "curve": dict,
    "final_return": _OR_NONE, "best_return": _OR_NONE,
    "diverged_at_chunk": (int, type(None)), "run": str, "population": int,
    "train_seconds": _NUMBER, "eval_seconds": _NUMBER, "compile_seconds": _NUMBER,
    "env_steps_per_second": _NUMBER, "gradient_steps_per_second": _NUMBER,
}  # fmt: skip
"""What a result holds. ``curve`` has ``rows``, of this seed, and ``return_mean``, null where it
was not finite; from ``run`` on it is of all ``population`` seeds that were trained together."""
_LATER: dict[str, Any] = {"training_return": _OR_NONE}
"""What results have that were written since there is such a field."""


class Stored(NamedTuple):
    """What a results file holds."""

    results: list[Record]
    whole: int
    """Bytes up to the end of the last line that is whole."""
    size: int
    """Bytes."""
    ends: bool
    """Whether the last whole line ends with a line break."""


def read_results(file: Path) -> Stored:
    """Read a results file; a last line that is cut short is left out, no file is an empty one.

    Raises:
        ValueError: naming the line, if one is damaged or repeats another.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return Stored([], 0, 0, True)
    except OSError as error:
        raise ValueError(f"results={str(file)!r}: must be readable: {error.strerror}") from error
    *lines, rest = data.split(b"\n")
    whole, ends = len(data) - len(rest), True
    with contextlib.suppress(ValueError):
        _result(rest)
        # Whole but for its line break: an editor may leave it out.
        whole, ends = len(data), False
        lines.append(rest)
    results: list[Record] = []
    seen: dict[tuple[str, int], int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            result = _result(line)
        except ValueError as error:
            raise ValueError(
                f"results={str(file)!r}: must be results; line {number}: {error}"
            ) from error
        name = (key_of(result["preset"], result["config"]), result["seed"])
        if name in seen:
            raise ValueError(
                f"results={str(file)!r}: must hold each result once; line {number} is of the same "
                f"cell and seed as line {seen[name]}"
            )
        seen[name] = number
        results.append(result)
    return Stored(results, whole, len(data), ends)


def repair(file: Path, stored: Stored) -> str | None:
    """Make a results file end with a whole line; return what was done, in words.

    Raises:
        RunFailed: if it cannot be written.
    """
    try:
        if stored.whole < stored.size:
            os.truncate(file, stored.whole)
            return f"{file}: the last line was cut short, and is dropped"
        if not stored.ends:
            with file.open("ab") as opened:
                opened.write(b"\n")
    except OSError as error:
        raise RunFailed(f"{file}: {error.strerror}") from error
    return None


def append_results(file: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Append results, all of them or none, and return when they are on the disk.

    Raises:
        RunFailed: if they cannot be written.
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
        raise RunFailed(f"{file}: {error.strerror}; what was trained is kept") from error


def done_seeds(cell: Cell, results: Sequence[Record]) -> set[int]:
    """Return the seeds of a cell that have results."""
    key = cell.key
    return {
        result["seed"] for result in results if key_of(result["preset"], result["config"]) == key
    }


def results_of(place: Path, cell: Cell, max_episode_steps: int | None) -> list[Record]:
    """Return the results of a run that has ended, one for each seed.

    Args:
        place: the run directory.
        cell: whose run it is.
        max_episode_steps: environment steps after which its episodes are truncated.

    Raises:
        ValueError: if the run's files cannot be read.
    """
    config = read_config(place)
    try:
        summary = json.loads((place / SUMMARY).read_text(encoding="utf-8"))
        records = read_lines(place / FILES["evaluation"])
        evaluations = [record for record in records if record["purpose"] == "evaluate"]
        chunks = read_lines(place / FILES["metrics"])
        common = _of_run(place.name, config, summary, cell, max_episode_steps)
        alone = {**summary, "diverged_at_chunk": None}
        return [
            {
                **common,
                "seed": learner["seed"],
                "final_return": learner["eval_return_mean"],
                "best_return": learner["best_eval_return_mean"],
                "training_return": _training_return(chunks, index, config.learners),
                "diverged_at_chunk": learner["diverged_at_chunk"],
                "curve": _curve(evaluations, index, config.learners),
            }
            for index, learner in enumerate(summary.get("learners") or [alone])
        ]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"run={str(place)!r}: must be a run that has ended; move it away to run its seeds "
            f"anew: {error!r}"
        ) from error


def _of_run(
    name: str, config: Config, summary: Record, cell: Cell, max_episode_steps: int | None
) -> Record:
    """Return what the results of all seeds of a run have in common."""
    fields = {field: value for field, value in to_dict(config).items() if field not in PLACE}
    told = ("versions", "device_kind", "devices", "eval_episodes", "train_seconds", "eval_seconds",
            "compile_seconds", "env_steps_per_second", "gradient_steps_per_second")  # fmt: skip
    return {
        "preset": cell.preset,
        "env": config.env,
        "total_rows": config.total_rows,
        "settings": cell.settings,
        "config_hash": key_of(cell.preset, fields),
        "config": fields,
        "max_episode_steps": max_episode_steps,
        "run": name,
        "population": config.learners,
        **{field: summary[field] for field in told},
    }


def _curve(evaluations: Sequence[Record], index: int, learners: int) -> Record:
    """Return a learner's evaluations; their rows are counted over all learners, which have as many
    each."""
    returns = [
        record["learners"][index] if learners > 1 else record["return_mean"]
        for record in evaluations
    ]
    return {
        "rows": [record["rows"] // learners for record in evaluations],
        "return_mean": returns,
    }


def _training_return(chunks: Sequence[Record], index: int, learners: int) -> float | None:
    """Return the mean over the chunks of the last tenth of a learner's rows: exploring, at the last
    epsilon, as most curves of MinAtar are published."""
    late = [chunk for chunk in chunks if chunk["rows"] > 0.9 * chunks[-1]["rows"]]
    means = [
        chunk["learners"]["return_mean"][index] if learners > 1 else chunk["return_mean"]
        for chunk in late
    ]
    ended = [mean for mean in means if mean is not None]
    return sum(ended) / len(ended) if ended else None


def _result(line: bytes) -> Record:
    """Read a line.

    Raises:
        ValueError: if it is no result.
    """
    try:
        result = json.loads(line)
    except ValueError:
        raise ValueError("it is no JSON") from None
    if not isinstance(result, dict):
        raise ValueError("it is no JSON object")
    for name, kind in (_FIELDS | _LATER).items():
        if name not in result and name in _LATER:
            continue
        if name not in result:
            raise ValueError(f"{name} is missing")
        value = result[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r}")
    rows, returns = (result["curve"].get(name) for name in ("rows", "return_mean"))
    if not isinstance(rows, list) or not isinstance(returns, list) or len(rows) != len(returns):
        raise ValueError("curve must have as many rows as return_mean")
    if not all(isinstance(x, _NUMBER) for x in rows):
        raise ValueError("curve.rows must be numbers")
    if not all(isinstance(x, _OR_NONE) for x in returns):
        raise ValueError("curve.return_mean must be numbers")
    return result
