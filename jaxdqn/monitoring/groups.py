"""Evaluations of runs, grouped by configuration: each group holds the seeds of a configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxdqn.config.config import Config, to_dict
from jaxdqn.monitoring.records import learner_identity
from jaxdqn.monitoring.statistics import Estimate, estimate
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.engine_record import engine_text, read_engine
from jaxdqn.storage.jsonl import FILES, read_lines
from jaxdqn.storage.parts import recorded_parts, references_of

Axis = Literal["env_steps", "seconds"]
AXES: dict[str, str] = {"env_steps": "environment steps", "seconds": "wall-clock seconds"}
"""Label of each axis of curves."""

POINTS = 100
"""Number of evenly spaced points of an estimate over seeds."""

_OF_ONE_RUN = (
    "seed", "num_seeds", "sweep", "population", "max_seconds", "checkpoint_every",
    "checkpoint_signals", "keep", "replay_in_checkpoint", "diagnostics",
)  # fmt: skip
"""Fields in which the runs of one group may differ."""


class Seed(NamedTuple):
    """Greedy evaluations of one learner, in order."""

    env_steps: list[float]
    """Environment steps of this learner before each evaluation."""
    seconds: list[float]
    returns: list[float]


class Group(NamedTuple):
    """Learners that differ only in their seed."""

    values: dict[str, Any]
    """Configuration, own parts (a reference or ``object``) and engine, without the fields in which
    the learners may differ."""
    seeds: list[Seed]
    solve_return: float | None


def groups_of(runs: Sequence[str | os.PathLike[str]]) -> list[Group]:
    """Group runs by configuration, own parts and engine; each learner of a population is a seed.

    Raises:
        ValueError: if a run directory cannot be read, or has no evaluation yet.
    """
    groups: dict[str, Group] = {}
    for run in runs:
        config, parts = read_config(run), _parts_of(run)
        for index, seed in enumerate(_seeds_of(Path(run), config)):
            swept = learner_identity(config, index)
            # Parts come first, because a label has the first differences.
            values = {**parts, **to_dict(config), **swept, **parts}
            for name in (*_OF_ONE_RUN, "learner"):
                values.pop(name, None)
            group = groups.setdefault(repr(values), Group(values, [], config.solve_return))
            group.seeds.append(seed)
    return list(groups.values())


def _parts_of(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the own parts and the engine of a run, in place of the options that they replace."""
    record = recorded_parts(run)
    named = {name: reference for name, (reference, _) in references_of(record).items()}
    objects = {name: "object" for name, part in record.items() if part is None}
    engine = read_engine(run)
    return {**objects, **named, **({} if engine is None else {"engine": engine_text(engine)})}


def _seeds_of(run: Path, config: Config) -> list[Seed]:
    records = [
        record
        for record in read_lines(run / FILES["evaluation"])
        if record["purpose"] == "evaluate"
    ]
    seeds = []
    for index in range(config.learners):
        # Records count steps over all learners.
        points = [
            (record["env_steps"] / config.learners, record["seconds"], _return_of(record, index))
            for record in records
        ]
        # A non-finite return is null in the file.
        finite = [point for point in points if point[2] is not None]
        if not finite:
            raise ValueError(f"run={os.fspath(run)!r}: must have an evaluation to draw; eval_every "
                             f"is {config.eval_every}")  # fmt: skip
        seeds.append(Seed(*map(list, zip(*finite, strict=True))))
    return seeds


def _return_of(record: dict[str, Any], index: int) -> float | None:
    return record["learners"][index] if "learners" in record else record["return_mean"]


def labels_of(groups: Sequence[Group]) -> list[str]:
    """Return a label for each group: the fields in which groups differ, and its number of seeds."""
    every = dict.fromkeys(name for group in groups for name in group.values)
    names = [name for name in every if len({repr(group.values.get(name)) for group in groups}) > 1]
    # Omit fields that follow from the environment or the budget.
    names = [name for name in names if name not in ("solve_return",)] or names
    labels = []
    for group in groups:
        shown = [
            str(group.values[name]) if name == "env" else _difference(name, group.values)
            for name in names[:4]
        ]
        count = len(group.seeds)
        seeds = f"{count} seeds" if count > 1 else "1 seed"
        labels.append(", ".join([*shown, seeds]))
    return labels


def _difference(name: str, values: dict[str, Any]) -> str:
    """Return an option, part or engine of a group as text; a group may lack a part."""
    if name == "engine":
        return str(values.get(name, engine_text(None)))
    return f"{name}={_plain(values.get(name, 'default'))}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class Band(NamedTuple):
    """Estimates over seeds along an axis."""

    x: list[float]
    estimates: list[Estimate]


def band_of(group: Group, axis: Axis, points: int = POINTS) -> Band:
    """Return the interquartile mean over the seeds of a group, with its bootstrap interval.

    Seeds are evaluated at different steps and times, so their returns are interpolated linearly at
    evenly spaced points. The points range from the latest first evaluation of any seed to the last
    evaluation of any seed. A seed that ended earlier, for example because it solved its task, keeps
    its last return. A single seed is not interpolated.
    """
    axes = [getattr(seed, axis) for seed in group.seeds]
    if len(group.seeds) == 1:
        values = group.seeds[0].returns
        return Band(axes[0], [Estimate(value, value, value) for value in values])
    start, stop = max(x[0] for x in axes), max(x[-1] for x in axes)
    grid = np.linspace(start, stop, points if stop > start else 1)
    each = np.stack([np.interp(grid, x, seed.returns)
                     for x, seed in zip(axes, group.seeds, strict=True)])  # fmt: skip
    return Band(grid.tolist(), [estimate(column) for column in each.T])
