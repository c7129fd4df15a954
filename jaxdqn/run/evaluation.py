"""Evaluations of a run: they select the best parameters and detect a solved environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import jax
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.monitoring.records import evaluation_record, mean_returns, select_learner
from jaxdqn.parallel import multihost
from jaxdqn.parallel.learners import RunKeys
from jaxdqn.run.compile import Programs
from jaxdqn.run.holding import record_evaluation
from jaxdqn.run.progress import Progress
from jaxdqn.run.recorder import Recorder
from jaxdqn.storage.jsonl import Record
from jaxdqn.training.evaluation import EvalInfo
from jaxdqn.types import Array, Params, TrainState


class RunEvaluator:
    """Evaluate the parameters of a run and keep a copy of the best ones."""

    def __init__(
        self,
        config: Config,
        programs: Programs,
        keys: RunKeys,
        progress: Progress,
        recorder: Recorder,
    ) -> None:
        self._config, self._programs, self._keys = config, programs, keys
        self._progress, self._recorder = progress, recorder
        self._epsilon = {"epsilon": config.eval_epsilon} if config.eval_epsilon else {}
        self.best_params: Params = None
        """Parameters of the best evaluation of a learner; None before the first evaluation."""

    def evaluate(self, state: TrainState) -> Record:
        """Evaluate the online parameters and return the record.

        This also updates the best parameters, and checks a new solution on fresh episodes.
        """
        progress, params = self._progress, self._programs.params(state)
        info = self._timed(self._programs.evaluate, params, self._keys.evaluate, 0)
        progress.judged = progress.chunk  # set only now, so that a failed evaluation is repeated
        means, now = mean_returns(info), self._recorder.now()
        self._keep_best(params, info, means, now)
        refuted, confirmation = self._confirm(params, means)
        if self._config.solve_return is not None:
            record_evaluation(
                progress, means, self._config.solve_return, self._recorder.seconds, refuted
            )
        standing = progress.standing(progress.leader(means))
        progress.last = {**now, **self._epsilon, **evaluation_record(info), **standing}
        record = {"purpose": "evaluate", **progress.last}
        self._recorder.log("evaluation", record)
        if confirmation is not None:
            self._recorder.log("evaluation", {"purpose": "confirm", **confirmation})
        return record

    def _keep_best(
        self, params: Params, info: EvalInfo, means: Sequence[float], now: Record
    ) -> None:
        """Update the best evaluation and its copy of the parameters, and each learner's best."""
        progress, leader = self._progress, self._progress.leader(means)
        best = None if progress.best is None else progress.best["return_mean"]
        if best is None or means[leader] > best or not np.isfinite(best):
            progress.best = {**now, **evaluation_record(select_learner(info, leader))}
            if self._config.learners > 1:
                progress.best["learner"] = leader
            self.best_params = self._copy(params, leader)
        for index, mean in enumerate(means):
            before = progress.best_returns[index]
            if np.isfinite(mean) and (before is None or mean > before):
                progress.best_returns[index] = mean

    def evaluate_best_on_fresh_episodes(self) -> Record:
        """Evaluate the best parameters on fresh episodes.

        The return of the evaluation that selected them is biased upwards.
        """
        return self._evaluate_best(self._programs.evaluate_one)

    def evaluate_best_at_epsilon(self) -> Record:
        """Evaluate the best parameters with an epsilon-greedy policy, epsilon ``EPSILON``."""
        return self._evaluate_best(self._programs.evaluate_at_epsilon)

    def _evaluate_best(self, evaluate: Callable[..., EvalInfo]) -> Record:
        key = self._keys.confirm if self._config.learners == 1 else self._keys.confirm[0]
        info = self._timed(evaluate, self.best_params, key, 0)
        return {**self._recorder.now(), **evaluation_record(info)}

    def last_params(self, state: TrainState) -> Params:
        """Return the online parameters; for a population, those of the leading learner."""
        params = self._programs.params(state)
        if self._config.learners == 1:
            return params
        last = self._progress.last
        return self._copy(params, 0 if last is None else last["leader"])

    def _confirm(
        self, params: Params, means: Sequence[float]
    ) -> tuple[Collection[int], Record | None]:
        """Check on fresh episodes that learners have solved the environment.

        Returns:
            The learners whose solution the fresh episodes did not confirm, and the record of the
            confirmation (None if there was nothing to confirm).
        """
        progress = self._progress
        candidates = [
            index
            for index, mean in enumerate(means)
            if progress.solved_at[index] is None
            and progress.diverged_at[index] is None
            and self._solves(mean)
        ]
        if not candidates:
            return (), None
        # The chunk number is folded into the key, so no two confirmations play the same episodes.
        info = self._timed(self._programs.evaluate, params, self._keys.confirm, progress.chunk + 1)
        confirmed = mean_returns(info)
        refuted = [index for index in candidates if not self._solves(confirmed[index])]
        for index in set(candidates) - set(refuted):
            progress.solved_at[index] = self._recorder.seconds
        standing = progress.standing(progress.leader(confirmed))
        record = {**self._epsilon, **evaluation_record(info), **standing}
        return refuted, {**self._recorder.now(), **record}

    def _solves(self, mean: float) -> bool:
        threshold = self._config.solve_return
        return threshold is not None and mean >= threshold

    def _copy(self, params: Params, learner: int) -> Params:
        """Copy the parameters of one learner, because the state will be donated."""
        if self._config.learners == 1:
            return self._programs.copy(params)
        return jax.tree.map(lambda leaf: np.array(leaf[learner]), params)

    def _timed(
        self, evaluate: Callable[..., EvalInfo], params: Params, key: Array, count: int
    ) -> EvalInfo:
        started = time.perf_counter()
        # Results may differ in the last bit between processes, but their decisions must be equal.
        info = multihost.broadcast_arrays(jax.device_get(evaluate(params, key, np.int32(count))))
        self._progress.eval_seconds += time.perf_counter() - started
        return info
