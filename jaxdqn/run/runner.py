"""The host loop: chunks on the device, and between them logs, evaluations and signals."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdqn.agent.agent import Optimizer
from jaxdqn.config.config import Config, from_dict, replace, to_dict
from jaxdqn.errors import RunFailed
from jaxdqn.monitoring.curves import plot_runs
from jaxdqn.monitoring.loggers import Logger, make_jsonl_logger
from jaxdqn.parallel import multihost
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.replay import check_memory
from jaxdqn.replay.export import fold_rows, read_rows
from jaxdqn.run.compile import Programs, compile_programs
from jaxdqn.run.device_memory import (
    bytes_per_device,
    bytes_sent,
    local_devices,
    working_replay_bytes,
)
from jaxdqn.run.interrupt import stop_on_signals
from jaxdqn.run.loop import HostLoop
from jaxdqn.run.summary import identity
from jaxdqn.storage import directory as run_directory
from jaxdqn.storage.checkpoint import checkpoint_path
from jaxdqn.storage.checkpoint_manager import CheckpointManager
from jaxdqn.storage.jsonl import Record, write_json
from jaxdqn.storage.params import save_params
from jaxdqn.storage.reshard import state_shape
from jaxdqn.storage.restore import newest_whole
from jaxdqn.storage.resume import changes_of_machine, changes_of_place, check_same_run
from jaxdqn.types import Environment, Params, Trainer, TrainState


class RunResult(NamedTuple):
    """What a run leaves in memory."""

    state: TrainState
    """At the end; each leaf has a leading axis, [D] with several replicas, [P] with several
    learners."""
    best_params: Params
    """Of the best evaluation of a learner."""
    summary: Record
    """What ``summary.json`` holds."""


def run(
    config: Config,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    preset: str | None = None,
    environment: Environment | None = None,
    network: Any = None,
    optimizer: Optimizer | None = None,
    loggers: Sequence[Logger] = (),
) -> RunResult:
    """Train as a configuration says, and report.

    SIGINT and SIGTERM end the run at the next chunk with everything written; a
    second SIGINT ends it at once. Checkpoints are taken where there is a run
    directory, and another call with ``resume`` goes on from the newest.

    Where ``jax.distributed`` has joined several processes, each calls this with the
    same configuration and it spans all their devices. Only process 0 reads and
    writes files and calls ``loggers``; a signal to any process ends all at the same
    chunk.

    Args:
        config: the run.
        out: the run directory to make, or to go on in; None writes nothing.
        resume: go on from the newest checkpoint in ``out`` if a run has begun there.
        preset: the name of the preset, for the summary.
        environment: your own, instead of ``config.env``.
        network: your own, as ``make_trainer`` takes it.
        optimizer: your own, as ``make_trainer`` takes it.
        loggers: take the records of the run; they are closed at its end.

    Raises:
        ValueError: if the configuration is refused, the replay does not fit in
            memory, ``out`` is in use or cannot be written, or what is there is
            another run or only damaged checkpoints.
        RunFailed: if the run cannot go on: the guard stops it, or the disk is full.
    """
    started = time.perf_counter()
    directory: Path | None = None
    if resume and out is None:
        raise ValueError("resume=True: must come with out, the run directory to go on in")
    if config.guard == "rollback" and out is None:
        raise ValueError("guard='rollback': must come with out, where there are checkpoints")
    if jax.process_count() > 1:
        _check_processes(config, resume=resume, saves=out is not None)
    goes_on = multihost.broadcast(lambda: resume and out is not None and run_directory.is_run(out))
    try:
        with ExitStack() as stack:
            for logger in loggers:
                stack.callback(logger.close)
            if not multihost.is_coordinator():
                loggers = ()
            if out is not None and not goes_on:
                _on_lead(lambda: run_directory.check_unused(out))
            parts = {"environment": environment, "network": network, "optimizer": optimizer}
            trainer = make_mapped_trainer(config, **parts)
            config = replace(config, env=trainer.environment.spec.name)
            keys = learner_keys(config)
            shape = jax.eval_shape(trainer.init, keys.train)
            _check_memory(config, trainer, shape, saves=out is not None)
            rows = None
            if config.replay_from is not None and not goes_on:
                rows = _rows_to_begin_with(config, trainer)
            if out is not None:
                _on_lead(lambda: _open_directory(out, config, goes_on, stack))
                directory = Path(out)
            given = _Given(config, parts, trainer, keys, shape, directory, preset, rows, goes_on)
            return _run(given, loggers, stack, started)
    except OSError as error:
        if directory is None or isinstance(error, BrokenPipeError | ConnectionError):
            raise
        raise _cannot_write(error, directory) from error


def _check_processes(config: Config, *, resume: bool, saves: bool) -> None:
    """Refuse what several processes cannot do together."""
    multihost.check_even()
    multihost.check_same({**to_dict(config), "resume": resume, "saves": saves})
    count, devices = jax.process_count(), jax.device_count()
    if config.devices != devices:
        raise ValueError(
            f"devices={config.devices}: must be {devices}, all the devices of the {count} processes"
        )
    alone = {"num_seeds": 1, "sweep": (), "model_devices": 1, "mapping": "shard_map"}
    for name, wanted in alone.items():
        value = getattr(config, name)
        if value != wanted:
            raise ValueError(f"{name}={value!r}: must be {wanted!r} with {count} processes")


def _on_lead(act: Callable[[], Any]) -> None:
    """Call a function on process 0; what it refuses is refused on all."""

    def call() -> None:
        act()

    multihost.broadcast(call)


def _check_memory(config: Config, trainer: Trainer, state: TrainState, *, saves: bool) -> None:
    """Refuse a replay that does not fit; on CPU, its copy for a checkpoint must fit too."""
    taken, devices = bytes_per_device(trainer, state), local_devices(config)
    needed = working_replay_bytes(config, taken)
    check_memory(needed, devices=devices)
    copies = saves and config.checkpoint_every != 0 and config.replay_in_checkpoint
    if copies and jax.default_backend() == "cpu":
        check_memory(
            needed + taken.replay,
            devices=devices,
            what="the replay and its copy for a checkpoint (replay_in_checkpoint) take",
        )


class _Given(NamedTuple):
    """What a run is made of, checked."""

    config: Config
    parts: dict[str, Any]
    """The caller's own environment, network and optimizer."""
    trainer: Trainer
    keys: Any
    state_shape: TrainState
    directory: Path | None
    preset: str | None
    rows: Any
    """To begin the replay with, leaves [I, K, E, ...]; or None."""
    goes_on: bool


def _run(given: _Given, loggers: Sequence[Logger], stack: ExitStack, started: float) -> RunResult:
    config, directory = given.config, given.directory
    if directory is not None and multihost.is_coordinator():
        files = make_jsonl_logger(directory)
        stack.callback(files.close)
        loggers = (*loggers, files)
    out = None if directory is None else str(directory)
    _log(loggers, "start", {"config": to_dict(config), "out": out})
    asked = stack.enter_context(stop_on_signals())
    if config.max_seconds is not None:
        asked.at(started + config.max_seconds)
    compiling = time.perf_counter()
    programs = compile_programs(config, given.trainer, given.keys, given.state_shape)
    compile_seconds = time.perf_counter() - compiling
    checkpoints = _make_checkpoint_manager(given, programs)
    if checkpoints is not None:
        stack.callback(checkpoints.close)
    host = HostLoop(config, programs, given.keys, loggers, checkpoints)
    state, preset = _first_state(given, programs, host, checkpoints, loggers)
    state = host.train(state, asked)
    taken = bytes_per_device(given.trainer, given.state_shape)
    summary = {
        **identity(config, preset),
        "parameter_bytes_per_device": taken.parameters + taken.target,
        "optimizer_bytes_per_device": taken.optimizer,
        "bytes_sent_per_gradient_step": bytes_sent(config, given.state_shape),
        "compile_seconds": compile_seconds,
        **host.summary(),
        "interrupted": host.unfinished,
        "ended_by": host.ended_by(asked),
    }
    _log(loggers, "summary", summary)
    last = host.last_params(state)
    if directory is not None and multihost.is_coordinator():
        # As NumPy arrays, for orbax refuses those of one among several processes.
        save_params(directory / "best", jax.device_get(host.best_params))
        save_params(directory / "last", jax.device_get(last))
        write_json(directory / run_directory.SUMMARY, summary)
        plot_runs([directory], directory / run_directory.CURVE)
    if host.failure is not None:
        raise host.failure
    return RunResult(state=state, best_params=host.best_params, summary=summary)


def _rows_to_begin_with(config: Config, trainer: Trainer) -> Any:
    assert config.replay_from is not None
    return fold_rows(read_rows(config.replay_from), config, trainer.environment.spec)


def _open_directory(
    out: str | os.PathLike[str], config: Config, goes_on: bool, stack: ExitStack
) -> None:
    """Make the run directory, or take up that of a run which goes on; hold its lock."""
    if not goes_on:
        run_directory.create(out, config, stack)
        return
    directory = Path(out)
    check_same_run(run_directory.read_config(out), config, directory)
    if config.checkpoint_every == 0:
        raise ValueError("checkpoint_every=0: must be above 0 to go on with a run")
    try:
        run_directory.lock(directory, stack)
    except OSError as error:
        raise run_directory.unwritable(directory, error) from error


def _make_checkpoint_manager(given: _Given, programs: Programs) -> CheckpointManager | None:
    if given.directory is None or given.config.checkpoint_every == 0:
        return None
    return CheckpointManager(
        given.directory,
        given.config,
        programs.snapshot,
        given.state_shape,
        preset=given.preset,
        shape_under=lambda old: state_shape(old, **given.parts),
    )


def _first_state(
    given: _Given,
    programs: Programs,
    host: HostLoop,
    checkpoints: CheckpointManager | None,
    loggers: Sequence[Logger],
) -> tuple[TrainState, str | None]:
    """Return the state to train from, new or restored, and the preset; say which it is."""
    restored = None
    if given.goes_on:
        assert given.directory is not None
        assert checkpoints is not None
        restored = checkpoints.newest(
            lambda meta: check_same_run(meta["config"], given.config, given.directory)
        )
        if restored is None:
            _on_lead(lambda: _check_has_not_ended(given))
        checkpoints.cut_back(restored)
        _on_lead(lambda: _take_up(given))
        for line in () if restored is None else restored.skipped:
            _log(loggers, "event", {"event": "damaged", "message": line})
    if restored is None:
        if given.goes_on:
            message = f"no checkpoint was finished in {given.directory}: the run starts anew"
            _log(loggers, "event", {"event": "started", "message": message})
        if given.config.replay_from is None:
            return host.start(), given.preset
        rows = given.rows
        if rows is None:
            rows = _rows_to_begin_with(given.config, given.trainer)
        return host.start(rows), given.preset
    assert given.directory is not None
    message = f"goes on from {checkpoint_path(given.directory, restored.step)}"
    if not restored.meta["replay"]:
        message += (
            ", which holds no replay: it is filled anew, and the run is not the same to the bit"
        )
    before = from_dict(restored.meta["config"])
    changes = [*changes_of_place(before, given.config), *changes_of_machine(restored)]
    if changes:
        message += f"; not the same to the bit, for {', '.join(changes)}"
    _log(loggers, "event", {"event": "resumed", "chunk": restored.step, "message": message})
    return host.resume(restored), given.preset or restored.meta["preset"]


def _check_has_not_ended(given: _Given) -> None:
    assert given.directory is not None
    if (given.directory / run_directory.SUMMARY).exists():
        raise ValueError(
            f"out={str(given.directory)!r}: must have a checkpoint to go on from; the run "
            "there has ended, and has none"
        )


def _take_up(given: _Given) -> None:
    """Make a run directory that of a run which has not ended."""
    assert given.directory is not None
    (given.directory / run_directory.SUMMARY).unlink(missing_ok=True)
    write_json(given.directory / run_directory.CONFIG, to_dict(given.config))


def _log(loggers: Sequence[Logger], kind: str, record: Record) -> None:
    for logger in loggers:
        logger.log(kind, record)


def _cannot_write(error: OSError, directory: Path) -> RunFailed:
    """Return what to raise where a file of the run could not be written."""
    if not multihost.is_coordinator():
        return RunFailed(f"process 0 cannot write: {error.strerror or error}")
    last = newest_whole(directory)
    kept = "there is no checkpoint" if last is None else f"{last} is whole: go on with resume"
    return RunFailed(f"{error.filename or directory}: {error.strerror or error}; {kept}")
