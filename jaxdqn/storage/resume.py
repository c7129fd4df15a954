"""Runs that have begun: whether one may go on, and what its newest checkpoint holds."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxdqn import envs
from jaxdqn.config.config import Config, from_dict, replace, to_dict
from jaxdqn.config.options import REPLICA_OPTIONS
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.reshard import state_shape
from jaxdqn.storage.restore import Restored, read_newest
from jaxdqn.storage.state import shape_for
from jaxdqn.types import EnvSpec, TrainState

FREE = (
    "checkpoint_every",
    "keep",
    "max_seconds",
    "replay_in_checkpoint",
    "guard",
    "rollback_factor",
    "rollback_limit",
    "stop_when_solved",
)
"""Fields that may change when a run goes on: they do not change what it computes."""
MOVABLE = ("devices", "mapping", "model_devices")
"""Fields that say where a run is computed: its state is laid out anew."""


def check_same_run(before: Config | dict[str, Any], after: Config, directory: Path | None) -> None:
    """Refuse to go on with a run under another configuration.

    ``total_rows`` may change, to train longer, where that leaves the chunks as
    they are and no schedule spans the budget. What says how replicas learn together
    may be left out where there is only one to go on.

    Raises:
        ValueError: naming the first field that differs, and both values.
    """
    stored = before if isinstance(before, Config) else from_dict(before)
    old, new = to_dict(stored), to_dict(after)
    for name in new:
        if name in (*FREE, *MOVABLE) or old[name] == new[name]:
            continue
        if name in REPLICA_OPTIONS and after.replicas == 1:
            continue
        if name == "total_rows":
            if stored.replay == "prioritized":
                why = ", since the importance exponent rises over the budget"
            elif stored.learning_rate_schedule != "constant":
                why = ", since the learning rate's schedule spans the budget"
            elif stored.iterations_per_chunk != after.iterations_per_chunk:
                why = (
                    f", or a budget with chunks of {stored.iterations_per_chunk} iterations "
                    f"(these have {after.iterations_per_chunk})"
                )
            else:
                continue
        else:
            why = ""
        raise ValueError(
            f"{name}={new[name]!r}: must be {old[name]!r}, as in the run in {directory}{why}"
        )


def changes_of_place(before: Config, after: Config) -> list[str]:
    """Return what moving a run to other devices changes in what it computes, in words."""
    if before.learners > 1:
        return []  # each learner computes the same wherever it is
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
            changes.append("what compression had not yet sent is forgotten")
        if before.average_every is not None and not before.average_moments:
            changes.append("the replicas' own moments are averaged")
    return changes


def read_state(
    run: str | os.PathLike[str], config: Config, **parts: Any
) -> tuple[Restored, EnvSpec]:
    """Read the newest whole checkpoint of a run; its devices need not be here.

    Args:
        run: the run directory.
        config: what it runs under.
        parts: the run's own environment, network or optimizer, as ``run`` takes them.

    Returns:
        The checkpoint, and what the run's environment is.

    Raises:
        ValueError: if there is none, or only damaged ones.
    """
    environment = parts.get("environment") or envs.make(config.env)
    target = _shape(config, **{**parts, "environment": environment})
    restored = read_newest(Path(run), lambda meta: shape_for(target, meta))
    if restored is None:
        raise ValueError(f"run={str(run)!r}: must have a checkpoint")
    return restored, environment.spec


def _shape(config: Config, **parts: Any) -> TrainState:
    """Return the shapes of a run's state, of one learner or of several, on any devices."""
    if config.learners == 1:
        return state_shape(config, **parts)
    trainer = make_mapped_trainer(replace(config, devices=1), **parts)
    return jax.eval_shape(trainer.init, learner_keys(config).train)


def machine() -> Record:
    """Return what a run must not change to repeat to the bit."""
    return {
        "device_kind": jax.devices()[0].device_kind,
        "cpu_threads": os.environ.get("NPROC"),
        "processes": jax.process_count(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "gymnax")},
    }


def changes_of_machine(restored: Restored) -> list[str]:
    """Return what is not as it was when a checkpoint was taken, in words."""
    before, now = {"processes": 1, **restored.meta["machine"]}, machine()
    if restored.meta["config"]["deterministic"]:
        # Then it makes no difference how the devices are divided over processes.
        before["processes"] = now["processes"]
    return [f"{name} was {before.get(name)}, is {now[name]}" for name in now
            if before.get(name) != now[name]]  # fmt: skip
