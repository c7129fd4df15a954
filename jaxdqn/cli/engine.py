"""Flags of ``jaxdqn run`` that choose the engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from jaxdqn.config.algorithm_rules import default_of
from jaxdqn.errors import reject
from jaxdqn.monitoring.output import say
from jaxdqn.storage.engine_record import engine_text, read_engine

if TYPE_CHECKING:
    from jaxdqn.actor_learner.engine import RayEngine

_OF_RAY = (
    "actors",
    "replay_shards",
    "learners",
    "server_mode",
    "max_staleness",
    "staleness_discount",
    "block_rows",
    "parameters_every",
    "initial_priorities",
    "cpus_per_actor",
    "cpus_per_shard",
    "cpus_per_learner",
    "gpus_per_learner",
    "ray_address",
)
_OF_COMPRESSION = ("compression", "top_k_fraction")
"""Options of data-parallel replicas that are also arguments of the Ray engine, for gradients sent
to a parameter server."""


def with_recorded_engine(flags: Any) -> Any:
    """Fill in the engine: with ``--resume`` that of the run and its arguments, otherwise jit.

    Given flags take precedence over recorded ones.

    Raises:
        ValueError: if the record of the engine is damaged.
    """
    record = read_engine(flags.out) if flags.resume and flags.out is not None else None
    if record is None or flags.engine not in (None, record["engine"]):
        return dataclasses.replace(flags, engine=flags.engine or "jit")
    missing = {name: None for name in ("engine", *_OF_RAY)}
    missing |= {name: default_of(name) for name in _OF_COMPRESSION}
    taken = {
        name: record[name]
        for name, default in missing.items()
        if name in record and getattr(flags, name) == default
    }
    if taken:
        say(f"resumes with {engine_text({'engine': record['engine'], **taken})}, as recorded")
    return dataclasses.replace(flags, **taken)


def without_engine_options(flags: Any) -> Any:
    """Reset the options that configure the engine and not the replicas: compression on Ray."""
    if flags.engine != "ray":
        return flags
    return dataclasses.replace(flags, **{name: default_of(name) for name in _OF_COMPRESSION})


def check_engine(flags: Any) -> None:
    """Check that the given flags fit the engine.

    Raises:
        ValueError: if a flag has no effect with the engine, or the engine does not support it.
    """
    if flags.engine == "ray":
        for name in ("coordinator", "multi_host", "explain", "debug"):
            if getattr(flags, name):
                reject(name, getattr(flags, name), "left out with engine='ray'")
        return
    for name in _OF_RAY:
        if getattr(flags, name) is not None:
            reject(name, getattr(flags, name), "left out without engine='ray'")


def make_engine(flags: Any) -> RayEngine | None:
    """Return the engine that the flags select; None for the trainer's programs."""
    if flags.engine != "ray":
        return None
    from jaxdqn.actor_learner.engine import RayEngine

    names = (*_OF_RAY, *_OF_COMPRESSION)
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    if "actors" in given:
        given["actors"] = actors_of(given["actors"])
    return RayEngine(**given)


def actors_of(text: Any) -> int | tuple[int, int]:
    """Parse a number of actors, or a minimum and a maximum such as ``2..8``.

    Raises:
        ValueError: if the text has neither form.
    """
    numbers = text if isinstance(text, list) else str(text).split("..")
    if len(numbers) > 2 or not all(str(number).isdigit() for number in numbers):
        reject("actors", text, "a number, or LEAST..MOST as in 2..8")
    least, most = int(numbers[0]), int(numbers[-1])
    return least if len(numbers) == 1 else (least, most)
