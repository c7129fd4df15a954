"""Handling of divergence: a non-finite loss, gradient or parameter."""

from __future__ import annotations

import jax
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.errors import RunFailed
from jaxdqn.monitoring.records import learner_identity
from jaxdqn.parallel import multihost
from jaxdqn.run.progress import Progress
from jaxdqn.run.recorder import Recorder
from jaxdqn.storage.checkpoint_manager import CheckpointManager
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.restore import Restored
from jaxdqn.training.guard import not_finite
from jaxdqn.types import Metrics, TrainState


class DivergenceHandler:
    """Apply ``config.guard`` after a chunk with a non-finite value.

    Args:
        config: configuration of the run.
        progress: progress of the run.
        recorder: receives the events.
        checkpoints: checkpoint manager; None if the run saves no checkpoints.
    """

    def __init__(
        self,
        config: Config,
        progress: Progress,
        recorder: Recorder,
        checkpoints: CheckpointManager | None,
    ) -> None:
        self._config, self._progress, self._recorder = config, progress, recorder
        self._checkpoints = checkpoints

    def needs_handling(self, metrics: Metrics) -> bool:
        """Return True if a value is not finite and the run has a guard or a population."""
        watched = self._config.guard != "off" or self._config.learners > 1
        return watched and not is_finite(metrics)

    def handle(self, state: TrainState, metrics: Metrics) -> Restored | None:
        """Record the divergence; then continue, roll back, or stop the run.

        Returns:
            The checkpoint to roll back to, or None to continue.

        Raises:
            RunFailed: if the guard stops the run; names the gradient step, the tensors and the last
                finite checkpoint.
        """
        config, progress = self._config, self._progress
        if config.learners > 1:
            self._record_diverged_learners(metrics)
            if config.guard != "stop" or None in progress.diverged_at:
                return None
            described = "every learner has diverged"
        else:
            described = self._record_skipped(metrics)
            if config.guard == "skip" and not metrics.lost:
                return None
        limit_reached = progress.rollbacks >= config.rollback_limit
        if self._checkpoints is not None and config.guard == "rollback" and not limit_reached:
            self._checkpoints.wait()
            restored = self._checkpoints.newest(finite=True)
            if restored is not None:
                return restored
        raise self._failure(state, metrics, described)

    def _record_skipped(self, metrics: Metrics) -> str:
        """Record the first non-finite gradient step of a single learner; return its description."""
        progress, skipped = self._progress, bool(metrics.skipped)
        before = progress.totals["gradient_steps"] - int(metrics.gradient_steps)
        first = before + 1 + int(metrics.first_skipped) if skipped else None
        record = {"event": "not finite", "chunk": progress.chunk, **self._recorder.now()}
        record |= {"first": first, "skipped": int(metrics.skipped), "guard": self._config.guard}
        if self._config.guard == "skip" and 0 < int(metrics.skipped) == progress.skipped[0]:
            record["message"] = (
                f"gradient step {first:,} was not finite: guard='skip' undoes such steps and "
                "counts them"
            )
        self._recorder.log("event", record)
        return "no step was undone" if first is None else f"first at gradient step {first:,}"

    def _record_diverged_learners(self, metrics: Metrics) -> None:
        """Record the learners of a population that diverged in this chunk; the others continue.

        With ``guard="skip"`` a learner counts as diverged only if all its steps in the chunk were
        skipped or its parameters are not finite.
        """
        progress, config = self._progress, self._config
        enough = metrics.gradient_steps if config.guard == "skip" else 1
        skipped = np.asarray(metrics.skipped)
        diverged = (skipped >= enough) | np.asarray(metrics.lost, bool)
        started = (skipped > 0) & (skipped == progress.skipped) & ~diverged
        if started.any():
            self._record_first_skipped(np.flatnonzero(started).tolist(), metrics)
        for index in np.flatnonzero(diverged):
            if progress.diverged_at[index] is not None:
                continue
            progress.diverged_at[index] = progress.chunk
            learner = learner_identity(config, int(index))
            named = ", ".join(f"{name} {value:g}" for name, value in learner.items())
            record = {"event": "not finite", "chunk": progress.chunk, **self._recorder.now()}
            record |= {**learner, "skipped": int(metrics.skipped[index]), "guard": config.guard}
            record["message"] = f"diverged in chunk {progress.chunk}: {named}; the others continue"
            self._recorder.log("event", record)

    def _record_first_skipped(self, learners: list[int], metrics: Metrics) -> None:
        """Record the learners of a population whose first skipped step is in this chunk."""
        chunk, guard = self._progress.chunk, self._config.guard
        record = {"event": "not finite", "chunk": chunk, **self._recorder.now(), "guard": guard}
        record |= {"learners": learners, "skipped": int(np.sum(metrics.skipped[learners]))}
        named = f"learner{'s' if len(learners) > 1 else ''} {', '.join(map(str, learners))}"
        record["message"] = (
            f"gradient steps were not finite from chunk {chunk} on: {named}; guard='skip' undoes "
            "such steps and counts them"
        )
        self._recorder.log("event", record)

    def _failure(self, state: TrainState, metrics: Metrics, described: str) -> RunFailed:
        progress = self._progress
        tensors = (
            ", ".join(not_finite(multihost.local_part(state)))
            or "no tensor of the state, since the update was undone"
        )
        checkpoint = "no checkpoint"
        if self._checkpoints is not None:
            self._checkpoints.close()
            good = self._checkpoints.newest(finite=True)
            if good is not None:
                checkpoint = f"last good checkpoint: {self._checkpoints.path(good.step)}"
        rollbacks = f"after {progress.rollbacks} rollbacks; " if progress.rollbacks else ""
        return RunFailed(
            f"guard={self._config.guard!r}: loss, gradient or parameters not finite in chunk "
            f"{progress.chunk} ({described}; {np.sum(metrics.skipped)} of "
            f"{np.sum(metrics.gradient_steps)} steps undone); now not finite: {tensors}; "
            f"{rollbacks}{checkpoint}"
        )


def check_learned(config: Config, progress: Progress) -> None:
    """Check that the guard kept at least one gradient step, if there were any.

    Raises:
        RunFailed: if it undid all of them.
    """
    # Replicas that average their parameters undo steps separately, and report the most.
    if not progress.learned_nothing or config.average_every is not None:
        return
    learners = f" of {config.learners} learners" if config.learners > 1 else ""
    raise RunFailed(
        f"guard={config.guard!r}: none of the {progress.totals['gradient_steps']:,} gradient "
        f"steps{learners} was finite, and all were undone: nothing was learned; check the scale "
        "of rewards and observations and the learning rate"
    )


def illegal_actions(metrics: Metrics, chunk: int) -> RunFailed | None:
    """Return the failure of a run that took an action forbidden by the mask, else None."""
    count = sum(int(np.sum(leaf)) for leaf in jax.tree.leaves(metrics.illegal))
    if count == 0:
        return None
    return RunFailed(
        f"legal: {count:,} actions in chunk {chunk} were not legal: the environment returned a "
        "mask without a legal action where the episode does not end, or a custom part took an "
        "action that exploration.legal forbids"
    )


def rollback_record(step: int, now: Record, state: TrainState) -> Record:
    """Return the event for a rollback to the checkpoint of a chunk."""
    rate = float(np.ravel(multihost.local_part(state.hyper.learning_rate))[0])
    return {"event": "rollback", "chunk": step, **now, "learning_rate": rate}


def is_finite(metrics: Metrics) -> bool:
    """Return True if every gradient step of a chunk and the parameters after it are finite."""
    return not (np.any(metrics.skipped) or np.any(metrics.lost)) and bool(
        np.isfinite([metrics.loss, metrics.grad_norm]).all()
    )
