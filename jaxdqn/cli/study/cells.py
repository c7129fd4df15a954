"""Cells of a study, each a preset on an environment, and the runs that train their seeds.

Imports no JAX.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxdqn.cli.study.settings import EXECUTION_FIELDS, label, ranges
from jaxdqn.config.config import Config, replace, to_dict
from jaxdqn.config.host_envs import is_host_env
from jaxdqn.config.presets import preset
from jaxdqn.config.protocols import PROTOCOLS
from jaxdqn.storage.directory import SUMMARY, is_run, path_part

CELLS = "cells"
"""Subdirectory of a study that holds its runs."""
CHECKPOINTS = "checkpoints"
"""Subdirectory of a run that holds its checkpoints."""


class Cell(NamedTuple):
    """Preset on an environment, trained with several seeds."""

    preset: str
    config: Config
    """Configuration of the first seeds; ``Group`` has the seeds of each run."""
    settings: dict[str, Any]
    """Fields of ``--set`` that differ from the preset, without ``EXECUTION_FIELDS``; plain
    values."""
    parts: Mapping[str, str] = {}
    """References ``MODULE:FUNCTION`` of custom parts, by the name of the part."""

    @property
    def env(self) -> str:
        return self.config.env

    @property
    def key(self) -> str:
        """Identity of the cell: equal for equal cells."""
        return key_of(self.preset, to_dict(self.config), self.parts)

    def __str__(self) -> str:
        shown = {**self.settings, **shown_parts(self.parts)}
        return f"{label(self.preset, shown)} on {self.env}"


class Group(NamedTuple):
    """Seeds that one run trains together, with the directory of that run."""

    seeds: range
    directory: Path
    state: Literal["new", "started", "finished"]
    """started: the run has a checkpoint; finished: its summary can be read."""


def make_cell(
    name: str,
    env: str,
    seeds: range,
    overrides: Mapping[str, Any],
    total_rows: int | None,
    parts: Mapping[str, str] | None = None,
) -> Cell:
    """Make a cell.

    Args:
        name: preset.
        env: environment.
        seeds: seeds of the first run.
        overrides: configuration fields, as returned by ``read_settings``.
        total_rows: rows per seed; None takes the preset's value.
        parts: references to custom parts. With a custom environment, ``env`` is its name.

    Raises:
        ValueError: if the preset does not exist or the configuration is invalid.
    """
    parts = parts or {}
    base = _for_own_environment(name, env) if "environment" in parts else preset(name, env=env)
    # Runs that stop early would have curves of different lengths.
    values = {**overrides, "stop_when": "never"}
    if total_rows is not None:
        values["total_rows"] = total_rows
    config = replace(base, **values, seed=seeds.start, num_seeds=len(seeds))
    plain = to_dict(config)
    settings = {
        field: plain[field]
        for field in sorted(overrides)
        if field not in EXECUTION_FIELDS and getattr(base, field) != overrides[field]
    }
    return Cell(name, config, settings, parts)


def _for_own_environment(name: str, env: str) -> Config:
    """Return a preset without the solve return and the protocol of its task."""
    return replace(preset(name), env=env, solve_return=None, stop_when="never",
                   **PROTOCOLS["gymnax"])  # fmt: skip


def shown_parts(parts: Mapping[str, str]) -> dict[str, str]:
    """Return the references that a label shows: all but the environment, which has a name."""
    return {name: reference for name, reference in parts.items() if name != "environment"}


def key_of(name: str, fields: Mapping[str, Any], parts: Mapping[str, str] | None = None) -> str:
    """Return the identity of a cell: equal for equal cells.

    Args:
        name: preset.
        fields: configuration, as returned by ``to_dict``. A missing field, one that a later
            version added, has its default.
        parts: references to custom parts. The identity contains a reference as it is written, not
            the code that it names.
    """
    complete = {**_defaults(), **fields}
    identifying = {
        field: _as_float(value)
        for field, value in complete.items()
        if field not in EXECUTION_FIELDS
    }
    content = [name, identifying, dict(parts)] if parts else [name, identifying]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def key_of_result(result: Mapping[str, Any]) -> str:
    """Return the identity of the cell that a result belongs to."""
    return key_of(result["preset"], result["config"], result.get("parts"))


def group_config(cell: Cell, seeds: range, max_seconds: float | None) -> Config:
    """Return the configuration of a run that trains some seeds of a cell.

    Raises:
        ValueError: if the configuration is invalid.
    """
    population = cell.config.population if len(seeds) > 1 else "auto"
    return replace(
        cell.config,
        seed=seeds.start,
        num_seeds=len(seeds),
        population=population,
        max_seconds=max_seconds,
    )


def groups_of(
    cell: Cell, missing: Iterable[int], out: Path, seeds_at_once: int | None
) -> list[Group]:
    """Return the runs that train the missing seeds of a cell, existing runs included.

    A started run is resumed only if it trains no other seeds, and no more than ``seeds_at_once``.

    Args:
        missing: seeds without a result.
        out: directory of the study.
        seeds_at_once: maximum number of seeds per run; None means no limit.
    """
    remaining, groups = set(missing), []
    for group in _existing_groups(cell, out):
        seeds = set(group.seeds)
        if group.state == "finished":
            usable = bool(seeds & remaining)
        else:
            usable = seeds <= remaining and len(seeds) <= (seeds_at_once or len(seeds))
        if usable:
            groups.append(group)
            remaining -= seeds
    for consecutive in ranges(remaining):
        # A run in an environment on the host trains one learner.
        step = seeds_at_once or (1 if is_host_env(cell.env) else len(consecutive))
        for first in consecutive[::step]:
            seeds_together = range(first, min(first + step, consecutive.stop))
            groups.append(Group(seeds_together, _directory(cell, out, seeds_together), "new"))
    return sorted(groups, key=lambda group: group.seeds.start)


def _existing_groups(cell: Cell, out: Path) -> list[Group]:
    """Return the runs of a cell on disk: finished ones first, then started ones, largest first."""
    name = re.compile(
        rf"{re.escape(path_part(f'{cell.preset}-{cell.env}'))}-s(\d+)-(\d+)-{cell.key}"
    )
    runs = out / CELLS
    groups = []
    for directory in sorted(runs.iterdir()) if runs.is_dir() else ():
        match = name.fullmatch(directory.name)
        if match and is_run(directory):
            seeds = range(int(match[1]), int(match[2]) + 1)
            groups.append(Group(seeds, directory, _state(directory)))
    # A run without a checkpoint cannot be resumed, so it counts as new.
    groups = [group for group in groups if group.state != "new"]
    return sorted(groups, key=lambda group: (group.state != "finished", -len(group.seeds)))


def _state(directory: Path) -> Literal["new", "started", "finished"]:
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
        if isinstance(summary, dict) and summary.get("interrupted") is False:
            return "finished"
    checkpoints = directory / CHECKPOINTS
    # The directory of an unfinished checkpoint does not have a number as its name.
    complete = checkpoints.is_dir() and any(x.name.isdigit() for x in checkpoints.iterdir())
    return "started" if complete else "new"


def _directory(cell: Cell, out: Path, seeds: range) -> Path:
    name = path_part(f"{cell.preset}-{cell.env}")
    return out / CELLS / f"{name}-s{seeds.start}-{seeds[-1]}-{cell.key}"


@functools.cache
def _defaults() -> dict[str, Any]:
    return to_dict(Config())


def _as_float(value: Any) -> Any:
    """Return whole numbers as floats: 1 and 1.0 are the same setting."""
    if isinstance(value, list | tuple):
        return [_as_float(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
