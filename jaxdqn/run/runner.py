"""Train a configuration, with records, evaluations and checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import jax

from jaxdqn.agent.options import Optimizer
from jaxdqn.config.config import Config, to_dict
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.errors import RunFailed, RunStopped
from jaxdqn.monitoring.curves import plot_runs
from jaxdqn.monitoring.loggers import Logger, LoggerGroup, make_jsonl_logger
from jaxdqn.monitoring.output import warn
from jaxdqn.parallel import multihost
from jaxdqn.parallel.learners import RunKeys
from jaxdqn.parallel.platforms import check_platforms
from jaxdqn.run.callbacks import as_callbacks
from jaxdqn.run.compile import Programs
from jaxdqn.run.device_memory import bytes_per_device, bytes_sent
from jaxdqn.run.divergence import check_learned
from jaxdqn.run.first_state import first_state
from jaxdqn.run.interrupt import StopRequest, stop_on_signals
from jaxdqn.run.loop import HostLoop
from jaxdqn.run.program_cache import StaticRun, compiled_programs
from jaxdqn.run.setup import RunSetup, check_processes, record_engine, record_start, set_up
from jaxdqn.run.summary import identity
from jaxdqn.storage import directory as run_directory
from jaxdqn.storage.checkpoint_manager import CheckpointManager
from jaxdqn.storage.jsonl import Record, write_json
from jaxdqn.storage.params import save_params
from jaxdqn.storage.reshard import state_shape
from jaxdqn.storage.restore import newest_intact
from jaxdqn.storage.resume import Extend
from jaxdqn.training.algorithms import MakeAgent, MakeLearning, MakeReplay
from jaxdqn.training.vector_trainer import VectorTrainer, acting_text
from jaxdqn.types import Agent, BatchLoss, Environment, Explore, Params, TrainState

_DISABLE_JIT = "jax_disable_jit"


class Engine(Protocol):
    """Alternative provider of a run's programs, in place of the compiled trainer."""

    def configure(self, config: Config, parts: dict[str, Any]) -> Config:
        """Return the configuration to run; raise ``ValueError`` if ``config`` is not supported."""

    def programs(
        self, static: StaticRun, config: Config, keys: RunKeys, check: Callable[[], None]
    ) -> Programs:
        """Return the programs of a run; for ``check`` see ``compiled_programs``."""

    def summary(self) -> Record:
        """Return additional fields for the summary of the run."""

    def record(self) -> Record:
        """Return the content of ``engine.json``: the name under ``engine``, and the arguments."""


class RunResult(NamedTuple):
    """Results of a run, in memory."""

    state: TrainState
    """Final state. Leaves have a leading axis [D] with several replicas, [P] with several
    learners."""
    best_params: Params
    """Parameters of the best evaluation of a learner."""
    summary: Record
    """Content of ``summary.json``."""
    directory: Path | None = None
    """Run directory; None if the run writes no files."""


def run(
    config: Config,
    *,
    out: str | os.PathLike[str] | None = None,
    unique: bool = False,
    resume: bool = False,
    extend: Extend | None = None,
    preset: str | None = None,
    environment: Environment | HostEnvironment | str | None = None,
    network: Any = None,
    optimizer: Optimizer | str | None = None,
    replay: MakeReplay | str | None = None,
    explore: Explore | str | None = None,
    loss: BatchLoss | str | None = None,
    learning: MakeLearning | str | None = None,
    agent: Agent | MakeAgent | str | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Any = (),
    engine: Engine | None = None,
) -> RunResult:
    """Train a configuration.

    SIGINT, the signals in ``checkpoint_signals`` and ``max_seconds`` stop the run at the end of the
    chunk, or of the next chunk if that has been dispatched already; the run then writes all files.
    If chunks take more than a second, the run stops within about half a second, from the second
    chunk on, and with ``max_seconds`` in the first chunk too. During compilation it stops within
    about a second by raising ``RunStopped``. A second SIGINT stops the run at once. Signals are
    handled only in Python's main thread. A run with a directory saves checkpoints; a later call
    with ``resume`` continues exactly from the newest checkpoint, even inside a chunk.

    Compiled programs are cached in the process (``jaxdqn.run.program_cache``), so a later run with
    the same shapes compiles nothing, even with a different seed or learning rate. They are also
    cached on disk (``jaxdqn.run.compilation_cache``), unless ``jax_enable_compilation_cache`` is
    False. If a JAX cache directory is already configured, it is used with the user's settings.

    To run over several processes, connect them with ``jax.distributed`` and call this function in
    each with the same configuration. The run then uses the devices of all processes. Only process 0
    reads and writes files and calls ``loggers``. A signal to any process stops all of them at the
    same iteration.

    Args:
        config: configuration of the run.
        out: run directory to create or to resume; None writes no files.
        unique: create a new directory, the first of ``out``, ``out-2``, ``out-3``, ... that does
            not exist; ``RunResult.directory`` is its path. Runs that start at the same time get
            different directories.
        resume: continue from the newest checkpoint in ``out`` if a run has been started there.
        extend: effect of a new ``total_rows`` on the schedules over the budget; only with
            ``resume``. ``stretch``, the default, computes the schedules from the new budget, as if
            it had been set from the start. ``keep`` keeps their old length, and afterwards their
            last values.
        preset: name of the preset, for the summary.
        environment: custom environment instead of ``config.env``. This and the other custom parts
            may be references ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``: the function is called
            without arguments and returns the part. The run directory stores references, so
            resuming, ``load_policy`` and the commands can use them.
        network: custom network, see ``make_trainer``.
        optimizer: custom optimiser, see ``make_trainer``.
        replay, explore, loss, learning, agent: custom parts, see ``make_trainer``. A reference may
            also name the part itself.
        engine: runs the chunks in place of the trainer's programs, such as
            ``jaxdqn.actor_learner.engine.RayEngine``. ``engine.json`` records the engine and its
            arguments. Pass an engine again to resume with it; without one the run continues with
            the trainer's programs and records an event.
        loggers: receive the records of the run and are closed at its end. A logger that raises an
            exception is dropped and reported on standard error and in an event; the run continues.
        callbacks: one object, or several, with any of the methods ``on_chunk``,
            ``on_evaluation``, ``on_checkpoint`` and ``on_end``. Each method is called with a
            ``jaxdqn.run.callbacks.CallbackContext``, and may raise ``jaxdqn.EndRun`` to end the run
            as if the budget were spent. A callback that raises any other exception is dropped and
            reported like a logger.

    Raises:
        ValueError: if the configuration is invalid, the replay does not fit in memory, ``out`` is
            in use or cannot be written, or it holds another run or only damaged checkpoints.
        RunFailed: if the run cannot continue, for example because the guard stops it or the disk is
            full. It is a ``RunStopped`` if the run is stopped before it has trained.
    """
    started = time.perf_counter()
    setup: RunSetup | None = None
    check_platforms()
    callbacks = as_callbacks(callbacks)
    _check_arguments(config, out, unique, resume, extend, len(callbacks))
    parts = {
        "environment": environment,
        "network": network,
        "optimizer": optimizer,
        "replay": replay,
        "explore": explore,
        "loss": loss,
        "learning": learning,
        "agent": agent,
    }
    if engine is not None:
        config = engine.configure(config, parts)
    try:
        with ExitStack() as stack:
            # The host transfers seeds, scalars and records; the trainer's step transfers nothing.
            stack.enter_context(jax.transfer_guard("allow"))
            group = LoggerGroup(loggers)
            stack.callback(group.close)
            setup = set_up(
                config,
                parts,
                out,
                unique=unique,
                resume=resume,
                extend=extend or "stretch",
                preset=preset,
                stack=stack,
            )
            return _train(setup, group, callbacks, stack, started, engine)
    except OSError as error:
        lost_peer = isinstance(error, BrokenPipeError | ConnectionError)
        if setup is None or setup.directory is None or lost_peer:
            raise
        raise _write_failure(error, setup.directory) from error


def _check_arguments(
    config: Config,
    out: str | os.PathLike[str] | None,
    unique: bool,
    resume: bool,
    extend: str | None,
    callbacks: int,
) -> None:
    if getattr(jax.config, _DISABLE_JIT):
        raise ValueError(
            "jax_disable_jit=True: must be False, because a run without jit would take hours and "
            "gigabytes; unset JAX_DISABLE_JIT. To run a few small iterations without jit, use "
            "--debug, or jaxdqn.run.debug.debug from Python"
        )
    if unique and (out is None or resume):
        raise ValueError("unique=True: must come with out, and without resume")
    if resume and out is None:
        raise ValueError("resume=True: must come with out, the run directory to resume")
    if extend not in (None, *get_args(Extend)):
        raise ValueError(f"extend={extend!r}: must be one of {', '.join(get_args(Extend))}")
    if extend is not None and not resume:
        raise ValueError(f"extend={extend!r}: must come with resume=True")
    if config.guard == "rollback" and out is None:
        raise ValueError("guard='rollback': must come with out, which receives checkpoints")
    if jax.process_count() > 1:
        check_processes(config, resume=resume, saves=out is not None, callbacks=callbacks)


def _train(
    setup: RunSetup,
    group: LoggerGroup,
    callbacks: Sequence[Any],
    stack: ExitStack,
    started: float,
    engine: Engine | None,
) -> RunResult:
    config = setup.config
    stop = stack.enter_context(stop_on_signals(config.checkpoint_signals))
    if config.max_seconds is not None:
        stop.set_deadline(started + config.max_seconds)
    loggers = _loggers(setup, group, on_engine=engine is not None)
    if not setup.resuming:
        record_start(setup, setup.preset)
    changed = record_engine(setup, None if engine is None else engine.record())
    if changed is not None:
        _log(loggers, "event", changed)
    compiling = time.perf_counter()
    log_event = partial(_log, loggers, "event")
    with _recording_stop(log_event):
        make_programs = compiled_programs if engine is None else engine.programs
        programs = make_programs(setup.static, config, setup.keys, stop.check)
    stack.callback(programs.close)
    compile_seconds = time.perf_counter() - compiling
    checkpoints = _make_checkpoint_manager(setup, programs)
    if checkpoints is not None:
        stack.callback(checkpoints.close)
    host = HostLoop(config, programs, setup.keys, loggers, checkpoints, callbacks, setup.directory)
    with _recording_stop(log_event):
        state, preset = first_state(setup, host, checkpoints, log_event)
        if setup.resuming:
            record_start(setup, preset)
        state = host.train(state, stop)
    summary = _summary(setup, host, stop, preset, compile_seconds)
    if engine is not None:
        summary |= engine.summary()
    # Log the summary before writing files, so that observers see the end of the run at once.
    _log(loggers, "summary", summary)
    failure = host.wait_for_checkpoint()
    host.callbacks.call("on_end", summary, state)
    last = host.last_params(state)
    if setup.directory is not None and multihost.is_coordinator():
        _write_results(setup.directory, host.best_params, last, summary)
        _draw_curve(setup.directory, log_event)
    if failure is not None:
        raise failure
    check_learned(config, host.progress)
    return RunResult(state, host.best_params, summary, setup.directory)


@contextmanager
def _recording_stop(log_event: Callable[[Record], None]) -> Iterator[None]:
    """Record that a run is stopped before it has trained."""
    try:
        yield
    except RunStopped as stopped:
        log_event({"event": "stopped", "reason": stopped.reason})
        raise


def _loggers(setup: RunSetup, group: LoggerGroup, *, on_engine: bool) -> Sequence[Logger]:
    """Return the loggers of this process, including the logger of the run directory.

    They receive the start record.
    """
    if not multihost.is_coordinator():
        return ()
    directory, config = setup.directory, setup.config
    if directory is not None:
        group.files = make_jsonl_logger(directory)
    loggers = (Logger(group.log, group.close),)
    out = None if directory is None else str(directory)
    start = {"config": to_dict(config), "out": out}
    if not on_engine and isinstance(setup.static.trainer, VectorTrainer):
        start["acting"] = acting_text(config)
    _log(loggers, "start", start)
    return loggers


def _make_checkpoint_manager(setup: RunSetup, programs: Programs) -> CheckpointManager | None:
    if setup.directory is None or setup.config.checkpoint_every == 0:
        return None
    return CheckpointManager(
        setup.directory,
        setup.config,
        programs.snapshot,
        setup.static.state_shape,
        preset=setup.preset,
        shape_under=lambda old: state_shape(old, **setup.parts.objects),
    )


def _summary(
    setup: RunSetup, host: HostLoop, stop: StopRequest, preset: str | None, compile_seconds: float
) -> Record:
    shapes = setup.static.state_shape
    taken = bytes_per_device(setup.static.trainer, shapes)
    return {
        **identity(setup.config, preset),
        "parameter_bytes_per_device": taken.parameters + taken.target,
        "optimizer_bytes_per_device": taken.optimizer,
        "bytes_sent_per_gradient_step": bytes_sent(setup.config, shapes),
        "compile_seconds": compile_seconds,
        **host.summary(),
        "interrupted": host.unfinished,
        "ended_by": host.ended_by(stop),
    }


def _write_results(directory: Path, best: Params, last: Params, summary: Record) -> None:
    # Convert to NumPy: with several processes, orbax rejects arrays that only one process holds.
    save_params(directory / "best", jax.device_get(best))
    save_params(directory / "last", jax.device_get(last))
    write_json(directory / run_directory.SUMMARY, summary)


def _draw_curve(directory: Path, log_event: Callable[[Record], None]) -> None:
    """Draw the learning curve. The run is complete without one, so a failure is only a warning."""
    try:
        plot_runs([directory], directory / run_directory.CURVE)
    except Exception as error:  # matplotlib may be missing, misconfigured or out of disk space
        reason = f"{run_directory.CURVE} could not be drawn: {error}"
        warn(reason)
        log_event({"event": "no curve", "reason": reason})


def _log(loggers: Sequence[Logger], kind: str, record: Record) -> None:
    for logger in loggers:
        logger.log(kind, record)


def _write_failure(error: OSError, directory: Path) -> RunFailed:
    """Return the failure of a run that could not write one of its files."""
    if not multihost.is_coordinator():
        return RunFailed(f"process 0 cannot write: {error.strerror or error}")
    last = newest_intact(directory)
    advice = (
        "there is no checkpoint" if last is None else f"{last} is complete: continue with resume"
    )
    return RunFailed(f"{error.filename or directory}: {error.strerror or error}; {advice}")
