"""Record of a run's environment, and the check that an environment matches it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxdqn.storage.jsonl import Record

if TYPE_CHECKING:
    from jaxdqn.types import EnvSpec

SPEC = "spec"
"""Name of the entry in the record of parts."""


def with_spec(record: Mapping[str, Any], spec: EnvSpec) -> Record:
    """Add the properties of the environment to the record of a run's parts."""
    return {**record, SPEC: spec_record(spec)}


def spec_record(spec: EnvSpec) -> Record:
    """Return the properties of an environment as plain values, for JSON."""
    values = {**spec._asdict(), "obs_dtype": str(spec.obs_dtype)}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def check_spec(record: Mapping[str, Any], spec: EnvSpec, run: str | os.PathLike[str]) -> None:
    """Check that an environment has the recorded properties: name, shapes, time limit, arguments.

    Args:
        record: record of the parts of the run; if it lacks a spec, nothing is checked.
        spec: spec of the environment.
        run: run directory, for the error message.

    Raises:
        ValueError: if a property differs; the error names each such property and both values.
    """
    before, now = record.get(SPEC), spec_record(spec)
    if before is None:
        return
    before = {"masked": False, **before}  # runs of versions without masks have no such entry
    changes = [
        f"{name} was {before[name]!r}, is {now[name]!r}"
        for name in now
        if name in before and before[name] != now[name]
    ]
    if changes:
        raise ValueError(
            f"environment={spec.name!r}: must be the environment of the run in {os.fspath(run)}; "
            f"{'; '.join(changes)}"
        )
