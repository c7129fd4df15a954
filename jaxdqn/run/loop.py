"""What the host does between chunks: it counts, logs, evaluates, and decides when to end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.errors import RunFailed
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.monitoring.records import (
    chunk_record,
    evaluation_record,
    learner_identity,
    mean_returns,
    of_one,
)
from jaxdqn.parallel import multihost
from jaxdqn.parallel.learners import RunKeys, learner_hypers
from jaxdqn.run.compile import Programs
from jaxdqn.run.interrupt import StopRequest
from jaxdqn.run.progress import Progress
from jaxdqn.storage.checkpoint_manager import CheckpointManager
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.restore import Restored
from jaxdqn.training.evaluation import EvalInfo
from jaxdqn.training.guard import not_finite
from jaxdqn.types import Array, Counter, Counters, Metrics, Params, Row, TrainState, counter_int


class HostLoop:
    """A run in progress as the host sees it: clocks, totals, the best parameters so far."""

    def __init__(
        self,
        config: Config,
        programs: Programs,
        keys: RunKeys,
        loggers: Sequence[Logger],
        checkpoints: CheckpointManager | None = None,
    ) -> None:
        self._config, self._programs, self._keys = config, programs, keys
        self._loggers, self._checkpoints = loggers, checkpoints
        self._started = time.perf_counter()
        self._progress = Progress.of(config.learners)
        self._best_again: Record | None = None
        self.best_params: Params = None
        self.failure: OSError | None = None
        """Why the last checkpoint could not be written."""

    def start(self, rows: Row | None = None) -> TrainState:
        """Start a run, warm-up included.

        Args:
            rows: initial content of the replay, leaves [I, K, E, ...].
        """
        key, hyper = self._keys.train, learner_hypers(self._config)
        self._started = time.perf_counter()
        if rows is None:
            started = self._programs.init(key, hyper)
        else:
            started = self._programs.preload(key, rows, hyper)
        state, counters = jax.block_until_ready(started)
        self._progress.train_seconds = self._seconds()
        self._progress.totals = _totals(jax.device_get(counters))
        if self._checkpoints is not None and self._config.guard == "rollback":
            self._save(state)  # so that there is something to go back to
        return state

    def resume(self, restored: Restored) -> TrainState:
        """Go on from a checkpoint."""
        state, totals = self._revive(restored)
        self._progress = Progress(**restored.meta["host"])
        if totals is not None:
            self._progress.totals = totals
        # The clock goes on from where it was: time in which nothing ran does not count.
        self._started = time.perf_counter() - self._progress.seconds
        return state

    def train(self, state: TrainState, asked: StopRequest) -> TrainState:
        """Run the chunks, until the budget, the solution, the clock or a signal ends it.

        Raises:
            RunFailed: if the guard stops the run.
            OSError: if a record cannot be written, or a checkpoint but the last.
        """
        config, progress = self._config, self._progress
        while self.unfinished and not _agreed(asked):
            state, metrics = self._run_chunk(state)
            if self._needs_handling(metrics):
                state, went_back = self._guard(state, metrics)
                progress = self._progress
                if went_back:
                    continue
            if progress.chunk % config.chunks_per_evaluation == 0:
                self._judge(state)
            if self._checkpoints is not None and self._checkpoints.due(progress.chunk):
                self._save(state)
        if self._checkpoints is not None:
            # Before the last evaluation, which a run that goes on from here does not make.
            try:
                if not self._checkpoints.has(progress.chunk):
                    self._save(state)
                self._checkpoints.wait()
            except OSError as error:
                # What was learned is still written, if it can be.
                self.failure = error
        if progress.judged != progress.chunk:
            self._judge(state)
        if not _agreed(asked):
            # The best of many evaluations was also the luckiest: play it anew.
            key = self._keys.confirm if config.learners == 1 else self._keys.confirm[0]
            info = self._timed(self._programs.evaluate_one, self.best_params, key, 0)
            self._best_again = {**self._now(), **evaluation_record(info)}
        return state

    def ended_by(self, asked: StopRequest) -> str:
        """Return what ended the run: ``budget``, ``solution``, or what asked it to end."""
        if self.unfinished:
            return asked.why or "nothing"
        return "budget" if self.spent else "solution"

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        return self._progress.chunk >= self._config.num_chunks

    @property
    def unfinished(self) -> bool:
        """Whether there are chunks left to run."""
        may_stop = self._config.stop_when_solved and self._progress.all_live_learners_solved
        return not self.spent and not may_stop

    def summary(self) -> Record:
        """Return what the run came to; call after ``train``."""
        return self._progress.summary(self._config, self._best_again)

    def _run_chunk(self, state: TrainState) -> tuple[TrainState, Metrics]:
        started, progress = time.perf_counter(), self._progress
        state, report = self._programs.chunk(state)
        metrics, counters = jax.device_get(report)
        seconds = time.perf_counter() - started
        progress.chunk += 1
        progress.train_seconds += seconds
        progress.totals = _totals(counters)
        record = {"chunk": progress.chunk, **self._now(), **chunk_record(metrics, seconds)}
        self._log("metrics", record)
        return state, metrics

    def _judge(self, state: TrainState) -> None:
        """Evaluate the parameters, keep them if they are the best, and confirm a solution."""
        progress, params = self._progress, self._programs.params(state)
        progress.judged = progress.chunk
        info = self._timed(self._programs.evaluate, params, self._keys.evaluate, 0)
        means = mean_returns(info)
        leader = progress.leader(means)
        progress.last = {**self._now(), **evaluation_record(info), **progress.standing(leader)}
        self._log("evaluation", {"purpose": "evaluate", **progress.last})
        best = None if progress.best is None else progress.best["return_mean"]
        if best is None or means[leader] > best or not np.isfinite(best):
            progress.best = {**self._now(), **evaluation_record(of_one(info, leader))}
            if self._config.learners > 1:
                progress.best["learner"] = leader
            self.best_params = self._copy(params, leader)
        for index, mean in enumerate(means):
            before = progress.best_returns[index]
            if np.isfinite(mean) and (before is None or mean > before):
                progress.best_returns[index] = mean
        self._confirm(params, means)

    def _confirm(self, params: Params, means: Sequence[float]) -> None:
        """Confirm by fresh episodes that learners have solved the environment."""
        progress = self._progress
        hopeful = [
            index
            for index, mean in enumerate(means)
            if progress.solved_at[index] is None
            and progress.diverged_at[index] is None
            and self._reaches(mean)
        ]
        if not hopeful:
            return
        info = self._timed(self._programs.evaluate, params, self._keys.confirm, progress.chunk + 1)
        again = mean_returns(info)
        for index in hopeful:
            if self._reaches(again[index]):
                progress.solved_at[index] = self._seconds()
        standing = progress.standing(progress.leader(again))
        record = {**self._now(), **evaluation_record(info), **standing}
        self._log("evaluation", {"purpose": "confirm", **record})

    def _copy(self, params: Params, learner: int) -> Params:
        """Return parameters of one learner that nothing else will write to."""
        if self._config.learners == 1:
            return self._programs.copy(params)
        return jax.tree.map(lambda leaf: np.array(leaf[learner]), params)

    def _save(self, state: TrainState) -> None:
        """Take a checkpoint: copy the state, and leave the writing to another thread."""
        assert self._checkpoints is not None
        progress, started = self._progress, time.perf_counter()
        progress.seconds = self._seconds()
        params = self.last_params(state)
        best = params if self.best_params is None else self.best_params
        host = dataclasses.asdict(progress)
        self._checkpoints.save(progress.chunk, state, best=best, last=params, host=host)
        blocked = time.perf_counter() - started
        self._log(
            "event",
            {
                "event": "checkpoint",
                "chunk": progress.chunk,
                **self._now(),
                "blocked_seconds": blocked,
            },
        )

    def _revive(self, restored: Restored) -> tuple[TrainState, Record | None]:
        """Return the state of a checkpoint; if its replay had to be refilled, the totals too."""
        assert self._checkpoints is not None
        state, totals = self._programs.revive(restored.state), None
        if not restored.meta["replay"]:
            state, counters = self._programs.refill(state)
            totals = _totals(jax.device_get(counters))
        params = self.last_params(state)
        best = self._checkpoints.read_best(restored.step, params)
        if self._config.learners == 1:  # it was read onto one device
            best = jax.device_put(best, jax.tree.map(lambda leaf: leaf.sharding, params))
        self.best_params = None if restored.meta["host"]["best"] is None else best
        return jax.block_until_ready(state), totals

    def _guard(self, state: TrainState, metrics: Metrics) -> tuple[TrainState, bool]:
        """Do what the configuration asks for after a chunk in which something was not finite.

        Returns:
            The state to go on from, and whether that is an earlier one.

        Raises:
            RunFailed: naming the gradient step, the tensors and the last good checkpoint.
        """
        config, progress = self._config, self._progress
        if config.learners > 1:
            self._note_divergence(metrics)
            if config.guard != "stop" or None in progress.diverged_at:
                return state, False
            what = "every learner has met it"
        else:
            first = progress.totals["gradient_steps"] - int(metrics.gradient_steps) + 1
            first += int(metrics.first_skipped)
            skipped = bool(metrics.skipped)
            what = f"first at gradient step {first:,}" if skipped else "nothing was undone"
            found = {"event": "not finite", "chunk": progress.chunk, **self._now()}
            found |= {"first": first if skipped else None, "skipped": int(metrics.skipped)}
            self._log("event", {**found, "guard": config.guard})
            if config.guard == "skip" and not metrics.lost:
                return state, False
        spent = progress.rollbacks >= config.rollback_limit
        if self._checkpoints is not None and config.guard == "rollback" and not spent:
            self._checkpoints.wait()
            restored = self._checkpoints.newest(finite=True)
            if restored is not None:
                del state  # there is not always room for both
                return self._go_back(restored), True
        where = (
            ", ".join(not_finite(multihost.local_part(state)))
            or "nowhere in the state, whose update was undone"
        )
        last = None
        if self._checkpoints is not None:
            self._checkpoints.close()
            good = self._checkpoints.newest(finite=True)
            last = None if good is None else self._checkpoints.place(good.step)
        raise RunFailed(
            f"guard={config.guard!r}: loss, gradient or parameters not finite in chunk "
            f"{progress.chunk} ({what}; {np.sum(metrics.skipped)} of "
            f"{np.sum(metrics.gradient_steps)} steps undone); now not finite: {where}; "
            + (f"after {progress.rollbacks} rollbacks; " if progress.rollbacks else "")
            + ("no checkpoint" if last is None else f"last good checkpoint: {last}")
        )

    def _note_divergence(self, metrics: Metrics) -> None:
        """Note which learners met something not finite, while the others go on.

        With the guard at ``skip`` a learner that takes other steps goes on too.
        """
        progress, config = self._progress, self._config
        least = metrics.gradient_steps if config.guard == "skip" else 1
        unlearned = np.asarray(metrics.skipped) >= least
        for index in np.flatnonzero(unlearned | np.asarray(metrics.lost, bool)):
            if progress.diverged_at[index] is not None:
                continue
            progress.diverged_at[index] = progress.chunk
            which = learner_identity(config, int(index))
            named = ", ".join(f"{name} {value:g}" for name, value in which.items())
            record = {"event": "not finite", "chunk": progress.chunk, **self._now(), **which}
            record |= {"skipped": int(metrics.skipped[index]), "guard": config.guard}
            record["message"] = f"diverged in chunk {progress.chunk}: {named}; the others go on"
            self._log("event", record)

    def _go_back(self, restored: Restored) -> TrainState:
        """Return the state of a checkpoint with a lower learning rate and other random numbers."""
        assert self._checkpoints is not None
        rollbacks, seconds = self._progress.rollbacks + 1, self._seconds()
        state, _ = self._revive(restored)
        self._progress = Progress(**restored.meta["host"])
        since = rollbacks - self._progress.rollbacks
        factor = np.float32(self._config.rollback_factor**since)
        state = self._programs.perturb(state, np.int32(rollbacks), factor)
        self._progress.rollbacks = rollbacks
        self._started = time.perf_counter() - seconds
        self._checkpoints.cut_back(restored)
        rate = float(np.ravel(multihost.local_part(state.hyper.learning_rate))[0])
        record = {"event": "rollback", "chunk": restored.step, **self._now(), "learning_rate": rate}
        self._log("event", record)
        return state

    def _needs_handling(self, metrics: Metrics) -> bool:
        """Say whether there is something not finite to deal with, or in a population to note."""
        watched = self._config.guard != "off" or self._config.learners > 1
        return watched and not _is_finite(metrics)

    def _reaches(self, mean: float) -> bool:
        wanted = self._config.solve_return
        return wanted is not None and mean >= wanted

    def _timed(
        self, evaluate: Callable[..., EvalInfo], params: Params, key: Array, count: int
    ) -> EvalInfo:
        started = time.perf_counter()
        # Processes might differ in the last bit, and must not decide differently.
        info = multihost.agree(jax.device_get(evaluate(params, key, np.int32(count))))
        self._progress.eval_seconds += time.perf_counter() - started
        return info

    def last_params(self, state: TrainState) -> Params:
        """Return the online parameters; of a population those of the learner that leads."""
        params = self._programs.params(state)
        if self._config.learners == 1:
            return params
        last = self._progress.last
        return self._copy(params, 0 if last is None else last["leader"])

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _now(self) -> Record:
        return {**self._progress.totals, "seconds": self._seconds()}

    def _log(self, kind: str, record: Record) -> None:
        for logger in self._loggers:
            logger.log(kind, record)


def _agreed(asked: StopRequest) -> bool:
    """Say on every process whether any of them has been asked to end."""
    why = multihost.first_reason(asked.why)
    if why is not None:
        asked.because(why)
    return why is not None


def _totals(counters: Counters) -> Record:
    """Return the counts as Python ints, over all learners."""

    def count(counter: Counter) -> int:
        each = zip(np.ravel(counter.high), np.ravel(counter.low), strict=True)
        return sum(counter_int(Counter(high, low)) for high, low in each)

    return {
        "env_steps": count(counters.env_steps),
        "rows": count(counters.rows),
        "gradient_steps": count(counters.gradient_steps),
    }


def _is_finite(metrics: Metrics) -> bool:
    return not (np.any(metrics.skipped) or np.any(metrics.lost)) and bool(
        np.isfinite([metrics.loss, metrics.grad_norm]).all()
    )
