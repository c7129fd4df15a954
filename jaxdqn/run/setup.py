"""Checked inputs of a run, before anything is compiled."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdqn.config.config import Config, from_dict, replace, to_dict
from jaxdqn.parallel import multihost
from jaxdqn.parallel.learners import RunKeys, learner_keys
from jaxdqn.replay.export import fold_rows, read_rows
from jaxdqn.run.memory_needs import check_memory_of_run
from jaxdqn.run.program_cache import StaticRun, static_run
from jaxdqn.run.summary import identity
from jaxdqn.storage import directory as run_directory
from jaxdqn.storage.directory import claim
from jaxdqn.storage.engine_record import engine_text, read_engine, write_engine
from jaxdqn.storage.environment_spec import check_spec, with_spec
from jaxdqn.storage.jsonl import Record, write_json
from jaxdqn.storage.loss_record import with_loss
from jaxdqn.storage.parts import OwnParts, read_parts, resolve_parts
from jaxdqn.storage.resume import Extend, check_same_run, resumed_config
from jaxdqn.storage.transfer import Transfer, read_transfer
from jaxdqn.types import EnvSpec, Row


class RunSetup(NamedTuple):
    """Checked inputs of a run."""

    config: Config
    parts: OwnParts
    """Custom parts of the caller, such as the environment, network and optimiser."""
    static: StaticRun
    keys: RunKeys
    directory: Path | None
    preset: str | None
    rows: Row | None
    """Initial content of the replay, leaves [I, K, E, ...]; None if it starts empty."""
    transfer: Transfer | None
    """Parameters of another run to start from; None if the networks start randomly."""
    resuming: bool
    """True if the directory contains a started run."""

    def read_rows(self) -> Row | None:
        """Read the initial replay content from ``config.replay_from``; None if it is not set."""
        return self.rows or _read_rows(self.config, self.static.trainer.environment.spec)

    def read_transfer(self) -> Transfer | None:
        """Read the parameters of the run ``config.init_from``; None if it is not set."""
        return self.transfer or _read_transfer(self.config, self.static)


def set_up(
    config: Config,
    parts: dict[str, Any],
    out: str | os.PathLike[str] | None,
    *,
    unique: bool,
    resume: bool,
    extend: Extend,
    preset: str | None,
    stack: ExitStack,
) -> RunSetup:
    """Check the inputs of a run and open its directory.

    Raises:
        ValueError: if an input is invalid, see ``run``.
    """
    resuming = multihost.broadcast(lambda: resume and out is not None and run_directory.is_run(out))
    if out is not None and not resuming and not unique:
        on_coordinator(lambda: run_directory.check_unused(out))
    keys = learner_keys(config)
    recorded = multihost.broadcast(lambda: read_parts(out) if resuming and out else {})
    own = resolve_parts(parts, recorded, run=out or "")
    if own.objects.get("environment") is not None:
        config = replace(config, env=own.objects["environment"].spec.name)
    if out is not None and resuming:
        before = from_dict(multihost.broadcast(lambda: to_dict(run_directory.read_config(out))))
        config = resumed_config(before, config, extend, Path(out))
    static = static_run(config, keys, own.objects)
    config = replace(config, reset=static.trainer.reset)
    spec = static.trainer.environment.spec
    check_spec(recorded, spec, out or "")
    own = own._replace(record=with_loss(with_spec(own.record, spec), config))
    check_memory_of_run(config, static.trainer, static.state_shape, saves=out is not None)
    rows = None if resuming else _read_rows(config, spec)
    transfer = None if resuming else _read_transfer(config, static)
    directory = None
    if out is not None:
        claimed = multihost.broadcast(lambda: os.fspath(claim(Path(out)) if unique else out))
        on_coordinator(lambda: _open_directory(claimed, config, resuming, stack, own.record))
        directory = Path(claimed)
    return RunSetup(config, own, static, keys, directory, preset, rows, transfer, resuming)


def record_engine(setup: RunSetup, record: Record | None) -> Record | None:
    """Record the engine of a run; return an event if it differs from the resumed run's engine.

    Args:
        setup: checked inputs of the run.
        record: name and arguments of the engine; None for the programs of the trainer.
    """
    if setup.directory is None or not multihost.is_coordinator():
        return None
    before = read_engine(setup.directory) if setup.resuming else record
    write_engine(setup.directory, record)
    if record == before:
        return None
    message = f"continues with {engine_text(record)}; before it had {engine_text(before)}"
    return {"event": "engine", "message": message}


def record_start(setup: RunSetup, preset: str | None) -> None:
    """Write ``start.json``: what is known at the start of a run, such as preset and machine."""
    if setup.directory is not None and multihost.is_coordinator():
        write_json(setup.directory / run_directory.START, identity(setup.config, preset))


def check_processes(config: Config, *, resume: bool, saves: bool, callbacks: int = 0) -> None:
    """Check that several processes can run a configuration together.

    Raises:
        ValueError: if they cannot; on processes whose inputs differ from those of process 0, or on
            all.
    """
    multihost.check_even()
    multihost.check_same(
        {**to_dict(config), "resume": resume, "saves": saves, "callbacks": callbacks}
    )
    count, devices = jax.process_count(), jax.device_count()
    if config.devices != devices:
        raise ValueError(
            f"devices={config.devices}: must be {devices}, all the devices of the {count} processes"
        )
    required = {"num_seeds": 1, "sweep": (), "model_devices": 1, "mapping": "shard_map"}
    for name, wanted in required.items():
        value = getattr(config, name)
        if value != wanted:
            raise ValueError(f"{name}={value!r}: must be {wanted!r} with {count} processes")


def on_coordinator(act: Callable[[], Any]) -> None:
    """Call a function on the coordinator and raise its exception on every process."""

    def call() -> None:
        act()

    multihost.broadcast(call)


def _read_rows(config: Config, spec: EnvSpec) -> Row | None:
    if config.replay_from is None:
        return None
    return fold_rows(read_rows(config.replay_from), config, spec)


def _read_transfer(config: Config, static: StaticRun) -> Transfer | None:
    if config.init_from is None:
        return None
    params = static.state_shape.agent.params
    if static.trainer.mapped:
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    return read_transfer(config.init_from, params)


def _open_directory(
    out: str | os.PathLike[str],
    config: Config,
    resuming: bool,
    stack: ExitStack,
    parts: Record,
) -> None:
    """Create the run directory, or check the directory to resume, and lock it."""
    if not resuming:
        run_directory.create(out, config, stack, parts)
        return
    directory = Path(out)
    check_same_run(run_directory.read_config(out), config, directory)
    if config.checkpoint_every == 0:
        raise ValueError("checkpoint_every=0: must be above 0 to resume a run")
    try:
        run_directory.lock(directory, stack)
    except OSError as error:
        raise run_directory.unwritable_error(directory, error) from error
