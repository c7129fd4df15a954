"""Host loop: run chunks; between them record, evaluate, checkpoint and check for a stop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from jaxdqn.config.config import Config
from jaxdqn.envs.vector.restarts import EnvironmentFailed
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.monitoring.records import chunk_record, few_distinct
from jaxdqn.parallel.learners import RunKeys, learner_hypers
from jaxdqn.run.callbacks import CallbackGroup
from jaxdqn.run.chunks import ChunkRunner, stop_agreed, totals
from jaxdqn.run.compile import Programs
from jaxdqn.run.device_memory import bytes_in_use, devices_that_count_memory, local_devices
from jaxdqn.run.divergence import DivergenceHandler, illegal_actions
from jaxdqn.run.evaluation import RunEvaluator
from jaxdqn.run.failures import FailureHandler
from jaxdqn.run.interrupt import StopRequest
from jaxdqn.run.progress import Progress
from jaxdqn.run.recorder import Recorder
from jaxdqn.run.saving import StateSaver
from jaxdqn.run.summary import results
from jaxdqn.run.warnings import WarningRecorder
from jaxdqn.storage.checkpoint_manager import CheckpointManager
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.restore import Restored
from jaxdqn.storage.transfer import Transfer, transferred
from jaxdqn.training.vector_evaluation import EvaluationStopped
from jaxdqn.types import Metrics, Params, Row, TrainState


class HostLoop:
    """Host side of a run, from the first state to the last."""

    def __init__(
        self,
        config: Config,
        programs: Programs,
        keys: RunKeys,
        loggers: Sequence[Logger],
        checkpoints: CheckpointManager | None = None,
        callbacks: Sequence[Any] = (),
        directory: Path | None = None,
    ) -> None:
        self._config, self._programs, self._keys = config, programs, keys
        self._checkpoints = checkpoints
        self.progress = Progress.of(config.learners)
        self._recorder = Recorder(self.progress, loggers)
        self.callbacks = CallbackGroup(
            callbacks, config, programs.params, self._recorder.log_event, directory
        )
        self._chunks = ChunkRunner(config, programs, self.progress)
        self._evaluator = RunEvaluator(config, programs, keys, self.progress, self._recorder)
        self._divergence = DivergenceHandler(config, self.progress, self._recorder, checkpoints)
        self._fresh: Record | None = None
        """Evaluation of the best parameters over fresh episodes."""
        self._at_epsilon: Record | None = None
        """Epsilon-greedy evaluation of the best parameters, if few fresh episodes were distinct."""
        self._saver = StateSaver(config, programs, self.progress, self._recorder, self._evaluator,
                                 checkpoints)  # fmt: skip
        self._failures = FailureHandler(programs, self.progress, self._recorder, self._saver)
        self._warnings = WarningRecorder(config, self.progress, self._recorder)
        self._counted = devices_that_count_memory(jax.local_devices()[: local_devices(config)])

    def start(self, rows: Row | None = None, transfer: Transfer | None = None) -> TrainState:
        """Start a run, warm-up included.

        Args:
            rows: initial content of the replay, leaves [I, K, E, ...].
            transfer: parameters of another run, which replace those of the networks after the
                warm-up.
        """
        key, hyper = self._keys.train, learner_hypers(self._config)
        self._recorder.start_clock()
        with self._failures.recording():
            if rows is None:
                started = self._programs.init(key, hyper)
            else:
                started = self._programs.preload(key, rows, hyper)
        state, counters = jax.block_until_ready(started)
        self._failures.record_restarts()
        if transfer is not None:
            state = transferred(state, transfer)
        self.progress.train_seconds = self._recorder.seconds
        self.progress.totals = totals(jax.device_get(counters))
        if self._checkpoints is not None and self._config.guard == "rollback":
            self._saver.save(state)  # a rollback needs at least one checkpoint
        return state

    def resume(self, restored: Restored) -> TrainState:
        """Resume from a checkpoint."""
        with self._failures.recording():
            state, refilled = self._saver.revive(restored)
        self.progress.restore(restored.meta["host"])
        if refilled is not None:
            self.progress.totals = refilled
        # The clock excludes the time between stop and resume.
        self._recorder.start_clock(self.progress.seconds)
        return state

    def train(self, state: TrainState, stop: StopRequest) -> TrainState:
        """Run chunks until the budget is spent, a goal is reached, or a stop is requested.

        The goal is ``stop_when``, or that of a callback.

        Raises:
            RunFailed: if the guard, an illegal action or a failed environment ends the run.
            OSError: if a record, or a checkpoint other than the last, cannot be written.
        """
        self._programs.stop_evaluations(lambda: bool(stop))
        self._warnings.check_start()
        with self._failures.recording():
            state = self._train(state, stop)
            self._finish(state, stop)
        return state

    def _train(self, state: TrainState, stop: StopRequest) -> TrainState:
        while self._chunks.in_flight or (self.unfinished and not stop_agreed(stop)):
            state, report = self._chunks.run(state, stop, ahead=self._may_run_ahead(stop))
            if report is None:  # stopped inside the chunk
                continue
            metrics, seconds = report
            state = self._record_chunk(state, metrics, seconds)
            if (failed := illegal_actions(metrics, self.progress.chunk)) is not None:
                self._failures.end_run(failed, state)
            if self._divergence.needs_handling(metrics):
                restored = self._divergence.handle(state, metrics)
                if restored is not None:
                    del state  # two states may not fit in memory
                    self._chunks.drop()
                    state = self._saver.roll_back(restored)
                    continue
            if not self._chunks.in_flight:  # else the state is that of the next chunk
                state = self._evaluate_and_save(state)
        return state

    def _record_chunk(self, state: TrainState, metrics: Metrics, seconds: float) -> TrainState:
        """Record the metrics of a chunk; return the state, which a callback may change."""
        progress = self.progress
        self._failures.record_restarts()
        record = {"chunk": progress.chunk, **self._recorder.now()}
        if self._config.restart_envs:
            record["env_restarts"] = progress.env_restarts
        record |= {"train_seconds": progress.train_seconds, "eval_seconds": progress.eval_seconds}
        record |= chunk_record(metrics, seconds) | self._programs.time_shares()
        if self._counted:
            record["device_bytes"] = bytes_in_use(self._counted)
        self._recorder.log("metrics", record)
        state = self.callbacks.call("on_chunk", record, state)
        self._warnings.check_chunk(metrics)
        return state

    def _evaluate_and_save(self, state: TrainState) -> TrainState:
        """Make the evaluation and the checkpoint that are due after a chunk."""
        chunk = self.progress.chunk
        if chunk % self._config.chunks_per_evaluation == 0:
            state = self._evaluate(state)
        if self._checkpoints is not None and self._checkpoints.is_due(chunk):
            self._saver.save(state)
            self.callbacks.call("on_checkpoint", self._saver.record, state)
        return state

    def _may_run_ahead(self, stop: StopRequest) -> bool:
        """Return whether the chunk after the next may be dispatched before the next one is read.

        This is False if a callback, an evaluation, a checkpoint or a stop may need the state
        between these two chunks.
        """
        chunk = self.progress.chunk + 1
        return (
            self._programs.runs_ahead
            and not self.callbacks.at_chunks
            and chunk < self._config.num_chunks
            and chunk % self._config.chunks_per_evaluation != 0
            and (self._checkpoints is None or not self._checkpoints.is_due(chunk))
            and not stop
        )

    def _evaluate(self, state: TrainState) -> TrainState:
        evaluation = None
        try:
            with suppress(EvaluationStopped):
                evaluation = self._evaluator.evaluate(state)
            self._failures.record_restarts()
        except EnvironmentFailed as failed:
            failed.state = state
            raise
        if evaluation is None:
            return state
        return self.callbacks.call("on_evaluation", evaluation, state)

    def _finish(self, state: TrainState, stop: StopRequest) -> None:
        """Take the last checkpoint, then make the last evaluations."""
        progress = self.progress
        if (reason := self.callbacks.reason) is not None:
            message = f"a callback ended the run: {reason}"
            self._recorder.log_event({"event": "ended", "message": message})
        self._failures.record_restarts()
        # Save before the last evaluations: an uninterrupted, longer run would not make them.
        # Another thread writes the checkpoint in the meantime.
        with self._failures.keeping_os_error():
            if self._saver.save_last(state):
                self.callbacks.call("on_checkpoint", self._saver.record, state)
        if progress.last is None:  # the summary needs one evaluation, even after a stop
            self._programs.stop_evaluations(lambda: False)
        if not progress.evaluated:
            self._evaluate(state)
        if not stop_agreed(stop):
            with suppress(EvaluationStopped):
                self._evaluate_best()
        self._failures.record_restarts()

    def _evaluate_best(self) -> None:
        """Evaluate the best parameters over fresh episodes; warn if few are distinct."""
        self._fresh = fresh = self._evaluator.evaluate_best_on_fresh_episodes()
        if few_distinct(fresh):
            if self._config.eval_epsilon == 0:
                self._at_epsilon = self._evaluator.evaluate_best_at_epsilon()
            self._warnings.warn_of_repeated_episodes(fresh, self._at_epsilon)

    def ended_by(self, stop: StopRequest) -> str:
        """Return why the run ended: ``budget``, ``solved``, ``held``, ``callback``, or the reason
        of the stop request."""
        if self.unfinished:
            return stop.reason or "nothing"
        if self.spent:
            return "budget"
        return "callback" if self.callbacks.reason is not None else self._config.stop_when

    @property
    def spent(self) -> bool:
        """True if the budget is used up."""
        return self.progress.chunk >= self._config.num_chunks

    @property
    def unfinished(self) -> bool:
        """True if there are chunks left to run."""
        return not self.spent and not self._reached_goal

    @property
    def _reached_goal(self) -> bool:
        if self.callbacks.reason is not None:
            return True
        if self._config.stop_when == "never":
            return False
        if self._config.stop_when == "held":
            return self.progress.all_live_learners_held
        return self.progress.all_live_learners_solved

    @property
    def best_params(self) -> Params:
        """Parameters of the best evaluation of a learner."""
        return self._evaluator.best_params

    def last_params(self, state: TrainState) -> Params:
        """Return the online parameters; for a population, those of the leading learner."""
        return self._evaluator.last_params(state)

    def summary(self) -> Record:
        """Return the results of the run; call after ``train``."""
        return results(self._config, self.progress, self._fresh, self._at_epsilon)

    def wait_for_checkpoint(self) -> OSError | None:
        """Wait until the last checkpoint is on disk; call after ``train``.

        Returns:
            The error if the checkpoint could not be written, otherwise None. The error is not
            raised here, so that the parameters are still saved.
        """
        with self._failures.keeping_os_error():
            self._saver.wait()
        return self._failures.os_error
