"""Check whether a run may be resumed, and read its newest checkpoint."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax

from jaxdqn import envs
from jaxdqn.config.config import Config, from_dict, replace, to_dict
from jaxdqn.config.options import REPLICA_OPTIONS
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.storage.environment_spec import check_spec
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.parts import read_parts
from jaxdqn.storage.reshard import state_shape
from jaxdqn.storage.restore import Restored, read_newest
from jaxdqn.storage.state import shape_for
from jaxdqn.types import EnvSpec, TrainState

Extend = Literal["keep", "stretch"]
"""Rule for schedules over the budget, if the budget changes on resume."""

CHANGEABLE = (
    "checkpoint_every",
    "checkpoint_signals",
    "keep",
    "max_seconds",
    "replay_in_checkpoint",
    "guard",
    "rollback_factor",
    "rollback_limit",
    "stop_when",
    "eval_every",
    "eval_episodes",
    "eval_epsilon",
    "act_on",
    "env_processes",
    "restart_envs",
    "check_bounds",
    "diagnostics",
)
"""Fields that may change on resume: stopping, evaluation, checkpoints, the guard, the processes and
checks of environments on the host, and diagnostics."""
BUDGET_FIELDS = ("total_rows", "chunk_iterations", "schedule_rows")
"""Fields of the budget; ``resumed_config`` makes them consistent with the resumed run."""
DEVICE_FIELDS = ("devices", "mapping", "model_devices")
"""Fields that select the devices: they may change on resume; the state is then resharded."""


def check_same_run(before: Config | dict[str, Any], after: Config, directory: Path | None) -> None:
    """Check that a run may be resumed under a configuration.

    ``total_rows`` may change, to train longer, and so may ``CHANGEABLE`` and ``DEVICE_FIELDS``. The
    options of data-parallel replicas may change if the run is resumed with a single replica.

    Args:
        before: configuration of the run.
        after: configuration to resume under, as returned by ``resumed_config``.
        directory: run directory, for the error message.

    Raises:
        ValueError: if another field differs; the error names the first one and both values.
    """
    stored = before if isinstance(before, Config) else from_dict(before)
    _check_fields(stored, after, directory)
    if after.iterations_per_chunk != stored.iterations_per_chunk:
        raise ValueError(
            f"chunk_iterations={after.chunk_iterations}: must be {stored.iterations_per_chunk}, as "
            f"in the run in {directory}"
        )


def _check_fields(before: Config, after: Config, directory: Path | None) -> None:
    old, new = to_dict(before), to_dict(after)
    for name in new:
        if name in (*CHANGEABLE, *DEVICE_FIELDS, *BUDGET_FIELDS) or old[name] == new[name]:
            continue
        if name in REPLICA_OPTIONS and after.replicas == 1:
            continue
        raise ValueError(
            f"{name}={new[name]!r}: must be {old[name]!r}, as in the run in {directory}"
        )


def resumed_config(before: Config, after: Config, extend: Extend, directory: Path | None) -> Config:
    """Return ``after`` with the chunk length and the schedule lengths of the resumed run.

    The chunk length never changes. ``reset='auto'`` becomes the ``reset`` of the run. If
    ``total_rows`` is unchanged, the schedules do not change either. Otherwise ``extend`` decides:
    with ``keep`` the schedules keep their old length, and afterwards their last values; with
    ``stretch`` they are computed from the new budget, as if it had been set from the start.

    Args:
        before: configuration of the run.
        after: configuration to resume under.
        extend: ``keep`` or ``stretch``.
        directory: run directory, for error messages.

    Raises:
        ValueError: if a field differs that must not; the error names the first one and both values.
    """
    if after.reset == "auto":
        after = replace(after, reset=before.reset, reset_pool=before.reset_pool)
    _check_fields(before, after, directory)
    values: dict[str, Any] = {}
    if after.chunk_iterations is None and after.iterations_per_chunk != before.iterations_per_chunk:
        values["chunk_iterations"] = before.iterations_per_chunk
    if after.has_budget_schedule:
        values["schedule_rows"] = _schedule_rows(before, after, extend)
    return replace(after, **values)


def _schedule_rows(before: Config, after: Config, extend: Extend) -> int | None:
    same_budget = before.total_rows == after.total_rows
    if same_budget:
        rows = before.schedule_rows
    else:
        rows = before.rows_of_schedules if extend == "keep" else None
    if after.schedule_rows not in (None, before.schedule_rows, rows):
        rule = "keep their extent" if same_budget else f"follow extend={extend!r}"
        raise ValueError(
            f"schedule_rows={after.schedule_rows}: must be left out on resume; the schedules {rule}"
        )
    return rows


def device_changes(before: Config, after: Config) -> list[str]:
    """Describe how the computation of a run changes when the run moves to other devices."""
    if before.learners > 1:
        return []  # the computation of a learner does not depend on its device
    changes = [
        f"{name} was {getattr(before, name)}, is {getattr(after, name)}"
        for name in ("devices", "model_devices")
        if getattr(before, name) != getattr(after, name)
    ]
    if before.replicas != after.replicas:
        if after.replicas == 1:
            changes += [
                f"{name} was {getattr(before, name)}, is {getattr(after, name)}"
                for name in REPLICA_OPTIONS
                if getattr(before, name) != getattr(after, name)
            ]
        if before.compression != "none":
            changes.append("the compression residuals are reset")
        if before.average_every is not None and not before.average_moments:
            changes.append("the optimiser moments of the replicas are averaged")
    return changes


def read_state(
    run: str | os.PathLike[str], config: Config, **parts: Any
) -> tuple[Restored, EnvSpec]:
    """Read the newest intact checkpoint of a run. The devices of the run need not be present.

    Args:
        run: run directory.
        config: configuration of the run.
        parts: custom parts, see ``run``.

    Returns:
        The checkpoint, and the ``EnvSpec`` of the run's environment.

    Raises:
        ValueError: if the run has no checkpoint or only damaged ones, or the environment differs
            from the environment of the run.
    """
    given = parts.get("environment")
    environment: Any = envs.configured_host_environment(config, given)
    if environment is None:
        environment = envs.configured_environment(config, given)
    check_spec(read_parts(run), environment.spec, run)
    target = _shape(config, **{**parts, "environment": environment})
    restored = read_newest(Path(run), lambda meta: shape_for(target, meta))
    if restored is None:
        raise ValueError(f"run={str(run)!r}: must have a checkpoint")
    return restored, environment.spec


def _shape(config: Config, **parts: Any) -> TrainState:
    """Return the shapes of a run's state, for a single learner or a population, on any devices."""
    if config.learners == 1:
        return state_shape(config, **parts)
    trainer = make_mapped_trainer(replace(config, devices=1), **parts)
    return jax.eval_shape(trainer.init, learner_keys(config).train)


def machine() -> Record:
    """Return the properties of this machine on which bitwise identical results depend."""
    return {
        "device_kind": jax.devices()[0].device_kind,
        "cpu_threads": os.environ.get("NPROC"),
        "processes": jax.process_count(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "gymnax")},
    }


def machine_changes(restored: Restored) -> list[str]:
    """Describe the differences between this machine and the one that wrote a checkpoint."""
    before, now = {"processes": 1, **restored.meta["machine"]}, machine()
    if restored.meta["config"]["deterministic"]:
        # Deterministic results do not depend on the division of devices into processes.
        before["processes"] = now["processes"]
    return [f"{name} was {before.get(name)}, is {now[name]}" for name in now
            if before.get(name) != now[name]]  # fmt: skip
