"""Checkpoints during a run: save, restore, and roll back."""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.run.chunks import totals
from jaxdqn.run.compile import Programs
from jaxdqn.run.divergence import rollback_record
from jaxdqn.run.evaluation import RunEvaluator
from jaxdqn.run.progress import Progress
from jaxdqn.run.recorder import Recorder
from jaxdqn.storage.checkpoint_manager import CheckpointManager
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.restore import Restored
from jaxdqn.types import TrainState


class StateSaver:
    """Save the state and the progress of a run, and restore them.

    Args:
        config: configuration of the run.
        programs: programs of the run.
        progress: progress of the run.
        recorder: receives the events.
        evaluator: holds the best parameters.
        checkpoints: checkpoint manager; None if the run saves no checkpoints.
    """

    def __init__(
        self,
        config: Config,
        programs: Programs,
        progress: Progress,
        recorder: Recorder,
        evaluator: RunEvaluator,
        checkpoints: CheckpointManager | None,
    ) -> None:
        self._config, self._programs, self._progress = config, programs, progress
        self._recorder, self._evaluator, self._checkpoints = recorder, evaluator, checkpoints
        self.record: Record = {}
        """Event of the newest checkpoint."""

    def save(self, state: TrainState) -> None:
        """Take a checkpoint: copy the state; another thread writes the copy."""
        assert self._checkpoints is not None
        progress, started = self._progress, time.perf_counter()
        progress.seconds = self._recorder.seconds
        params = self._evaluator.last_params(state)
        best = params if self._evaluator.best_params is None else self._evaluator.best_params
        host = dataclasses.asdict(progress)
        self._checkpoints.save(progress.chunk, state, best=best, last=params, host=host)
        record = {"event": "checkpoint", "chunk": progress.chunk, **self._recorder.now()}
        record["blocked_seconds"] = time.perf_counter() - started
        self._recorder.log("event", record)
        self.record = record

    def save_last(self, state: TrainState) -> bool:
        """Take a checkpoint of the last state unless there is one; return whether one was taken."""
        checkpoints, progress = self._checkpoints, self._progress
        if checkpoints is None:
            return False
        if progress.partial is None and checkpoints.has_saved(progress.chunk):
            return False
        self.save(state)
        return True

    def wait(self) -> None:
        """Wait until the newest checkpoint is on disk.

        Raises:
            OSError: if that checkpoint cannot be written.
        """
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def revive(self, restored: Restored) -> tuple[TrainState, Record | None]:
        """Return the state of a checkpoint, and the new totals if its replay was refilled."""
        assert self._checkpoints is not None
        state, refilled = self._programs.revive(restored.state), None
        if not restored.meta["replay"]:
            state, counters = self._programs.refill(state)
            refilled = totals(jax.device_get(counters))
        params = self._evaluator.last_params(state)
        best = self._checkpoints.read_best(restored.step, params)
        if self._config.learners == 1:  # orbax restores parameters onto one device
            best = jax.device_put(best, jax.tree.map(lambda leaf: leaf.sharding, params))
        self._evaluator.best_params = None if restored.meta["host"]["best"] is None else best
        return jax.block_until_ready(state), refilled

    def roll_back(self, restored: Restored) -> TrainState:
        """Return the state of a checkpoint with a lower learning rate and different random keys."""
        assert self._checkpoints is not None
        progress = self._progress
        rollbacks, seconds = progress.rollbacks + 1, self._recorder.seconds
        state, _ = self.revive(restored)
        progress.restore(restored.meta["host"])
        since = rollbacks - progress.rollbacks
        factor = np.float32(self._config.rollback_factor**since)
        state = self._programs.perturb(state, np.int32(rollbacks), factor)
        progress.rollbacks = rollbacks
        self._recorder.start_clock(seconds)
        self._checkpoints.truncate_records(restored)
        self._recorder.log("event", rollback_record(restored.step, self._recorder.now(), state))
        return state
