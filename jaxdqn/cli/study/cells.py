"""The cells of a study, each a preset on an environment, and the runs that their seeds take.

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

from jaxdqn.cli.study.settings import PLACE, label, ranges
from jaxdqn.config.config import Config, replace, to_dict
from jaxdqn.config.presets import preset
from jaxdqn.storage.directory import SUMMARY, is_run

CELLS = "cells"
"""Directory, in that of a study, of the runs."""
CHECKPOINTS = "checkpoints"
"""Directory, in that of a run, of what it goes on from."""


class Cell(NamedTuple):
    """What is trained with several seeds."""

    preset: str
    config: Config
    """Of the first seeds; ``Group`` says which run."""
    settings: dict[str, Any]
    """Fields of ``--set`` that are not the preset's own, but for ``PLACE``; plain values."""

    @property
    def env(self) -> str:
        return self.config.env

    @property
    def key(self) -> str:
        """The same for two cells if they are the same cell."""
        return key_of(self.preset, to_dict(self.config))

    def __str__(self) -> str:
        return f"{label(self.preset, self.settings)} on {self.env}"


class Group(NamedTuple):
    """Seeds that are trained together, in a run directory of their own."""

    seeds: range
    directory: Path
    state: Literal["new", "begun", "ended"]
    """begun: it has a checkpoint; ended: what it came to can be read."""


def make_cell(
    name: str, env: str, seeds: range, overrides: Mapping[str, Any], total_rows: int | None
) -> Cell:
    """Make a cell.

    Args:
        name: of the preset.
        env: of the environment.
        seeds: that run at once at first.
        overrides: fields of the configuration, as ``read_settings`` gives them.
        total_rows: rows of each seed; the preset's own if None.

    Raises:
        ValueError: if there is no such preset, or the configuration is refused.
    """
    own = preset(name, env=env)
    # Runs that end when they are solved would have curves of different lengths.
    values = {**overrides, "stop_when_solved": False}
    if total_rows is not None:
        values["total_rows"] = total_rows
    config = replace(own, **values, seed=seeds.start, num_seeds=len(seeds))
    plain = to_dict(config)
    settings = {
        field: plain[field]
        for field in sorted(overrides)
        if field not in PLACE and getattr(own, field) != overrides[field]
    }
    return Cell(name, config, settings)


def key_of(name: str, fields: Mapping[str, Any]) -> str:
    """Return what is the same for two cells if they are the same cell.

    Args:
        name: of the preset.
        fields: of the configuration, as ``to_dict`` gives them; what is missing, since a later
            version added it, has its default.
    """
    whole = {**_defaults(), **fields}
    told = {field: _as_float(value) for field, value in whole.items() if field not in PLACE}
    text = json.dumps([name, told], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def group_config(cell: Cell, seeds: range, max_seconds: float | None) -> Config:
    """Return the configuration of a run of some of a cell's seeds.

    Raises:
        ValueError: if it is refused.
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
    """Return the runs that bring in the missing seeds of a cell; one that has begun goes on.

    Args:
        missing: seeds without a result.
        out: directory of the study.
        seeds_at_once: most seeds of a run; any number if None.
    """
    wanted, groups = set(missing), []
    for group in _found(cell, out):
        seeds = set(group.seeds)
        if group.state == "ended":
            fits = bool(seeds & wanted)
        else:
            fits = seeds <= wanted and len(seeds) <= (seeds_at_once or len(seeds))
        if fits:
            groups.append(group)
            wanted -= seeds
    for seeds_in_row in ranges(wanted):
        step = seeds_at_once or len(seeds_in_row)
        for first in seeds_in_row[::step]:
            seeds_together = range(first, min(first + step, seeds_in_row.stop))
            groups.append(Group(seeds_together, _directory(cell, out, seeds_together), "new"))
    return sorted(groups, key=lambda group: group.seeds.start)


def _found(cell: Cell, out: Path) -> list[Group]:
    """Return the runs of a cell that have ended, then those that have begun, the larger first."""
    name = re.compile(rf"{re.escape(f'{cell.preset}-{cell.env}')}-s(\d+)-(\d+)-{cell.key}")
    places = out / CELLS
    found = []
    for place in sorted(places.iterdir()) if places.is_dir() else ():
        match = name.fullmatch(place.name)
        if match and is_run(place):
            seeds = range(int(match[1]), int(match[2]) + 1)
            found.append(Group(seeds, place, _state(place)))
    # Without a checkpoint there is nothing to go on from.
    found = [group for group in found if group.state != "new"]
    return sorted(found, key=lambda group: (group.state != "ended", -len(group.seeds)))


def _state(place: Path) -> Literal["new", "begun", "ended"]:
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((place / SUMMARY).read_text(encoding="utf-8"))
        if isinstance(summary, dict) and summary.get("interrupted") is False:
            return "ended"
    checkpoints = place / CHECKPOINTS
    finished = checkpoints.is_dir() and any(x.name.isdigit() for x in checkpoints.iterdir())
    return "begun" if finished else "new"


def _directory(cell: Cell, out: Path, seeds: range) -> Path:
    return out / CELLS / f"{cell.preset}-{cell.env}-s{seeds.start}-{seeds[-1]}-{cell.key}"


@functools.cache
def _defaults() -> dict[str, Any]:
    return to_dict(Config())


def _as_float(value: Any) -> Any:
    """Return whole numbers as floats: 1 and 1.0 are the same setting."""
    if isinstance(value, list | tuple):
        return [_as_float(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
