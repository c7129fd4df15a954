"""Initial state of a run, new or restored from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxdqn.config.config import Config, from_dict, to_dict
from jaxdqn.run.loop import HostLoop
from jaxdqn.run.setup import RunSetup, on_coordinator
from jaxdqn.storage import directory as run_directory
from jaxdqn.storage.checkpoint import checkpoint_path
from jaxdqn.storage.checkpoint_manager import CheckpointManager
from jaxdqn.storage.jsonl import Record, write_json
from jaxdqn.storage.parts import write_parts
from jaxdqn.storage.restore import Restored
from jaxdqn.storage.resume import check_same_run, device_changes, machine_changes
from jaxdqn.training.vector_trainer import VectorTrainer
from jaxdqn.types import TrainState


def first_state(
    setup: RunSetup,
    host: HostLoop,
    checkpoints: CheckpointManager | None,
    log: Callable[[Record], None],
) -> tuple[TrainState, str | None]:
    """Return the initial state and the name of the preset.

    Args:
        setup: checked inputs of the run.
        host: host loop, which creates the state.
        checkpoints: checkpoint manager; None if the run saves no checkpoints.
        log: function that receives the events: the checkpoint to resume from, and damaged
            checkpoints.

    Raises:
        ValueError: if the directory contains a different run, a run that ended without a
            checkpoint, or only damaged checkpoints.
    """
    if not setup.resuming:
        return _start(setup, host, log), setup.preset
    assert setup.directory is not None
    assert checkpoints is not None
    restored = _restore(setup, setup.directory, checkpoints)
    if restored is None:
        message = (
            f"no checkpoint was finished in {setup.directory}: the run starts from the beginning"
        )
        log({"event": "started", "message": message})
        return _start(setup, host, log), setup.preset
    for line in restored.skipped:
        log({"event": "damaged", "message": line})
    message = _resume_message(setup, setup.directory, restored)
    log({"event": "resumed", "chunk": restored.step, "message": message})
    return host.resume(restored), setup.preset or restored.meta["preset"]


def _start(setup: RunSetup, host: HostLoop, log: Callable[[Record], None]) -> TrainState:
    """Start a run; load the replay and the parameters that the configuration names."""
    transfer = setup.read_transfer()
    if transfer is not None:
        record = {"source": transfer.source, "taken": list(transfer.taken), "new": transfer.new}
        log({"event": "initialised", "message": transfer.message, **record})
    return host.start(setup.read_rows(), transfer)


def _restore(setup: RunSetup, directory: Path, checkpoints: CheckpointManager) -> Restored | None:
    """Read the newest checkpoint, if any, and truncate the records to it."""
    restored = checkpoints.newest(
        lambda meta: check_same_run(meta["config"], setup.config, directory)
    )
    if restored is None:
        on_coordinator(lambda: _check_has_not_ended(directory))
    checkpoints.truncate_records(restored)
    on_coordinator(lambda: _reopen(setup, directory))
    return restored


def _resume_message(setup: RunSetup, directory: Path, restored: Restored) -> str:
    message = f"resumes from {checkpoint_path(directory, restored.step)}"
    if not restored.meta["replay"]:
        message += (
            ", which holds no replay: the replay is refilled, and the run is not bitwise identical "
            "to an uninterrupted one"
        )
    if isinstance(setup.static.trainer, VectorTrainer):
        message += "; the environments on the host start new episodes"
    before = from_dict(restored.meta["config"])
    if setup.config.has_budget_schedule:
        message += _schedule_message(before, setup.config)
    changes = [*device_changes(before, setup.config), *machine_changes(restored)]
    if changes:
        message += f"; not bitwise identical, since {', '.join(changes)}"
    return message


def _schedule_message(before: Config, now: Config) -> str:
    """Describe the schedules over the budget; return an empty text if the budget is unchanged."""
    if before.total_rows == now.total_rows:
        return ""
    rows = f"{now.rows_of_schedules:,} rows"
    if before.rows_of_schedules == now.rows_of_schedules:
        return f"; schedules still end after {rows} and then hold their last values (extend=keep)"
    return f"; schedules now end after {rows}, {before.rows_of_schedules:,} before (extend=stretch)"


def _check_has_not_ended(directory: Path) -> None:
    if (directory / run_directory.SUMMARY).exists():
        raise ValueError(
            f"out={str(directory)!r}: must have a checkpoint to resume from; the run there ended "
            "without one"
        )


def _reopen(setup: RunSetup, directory: Path) -> None:
    """Remove the summary of the stopped run; write the current configuration and parts."""
    (directory / run_directory.SUMMARY).unlink(missing_ok=True)
    write_parts(directory, setup.parts.record)
    write_json(directory / run_directory.CONFIG, to_dict(setup.config))
