"""Progress of a run: the host's part of a checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxdqn.storage.jsonl import Record


@dataclasses.dataclass
class Progress:
    """Counts, clocks and results of a run, as plain values."""

    chunk: int = 0
    """Number of completed chunks."""
    judged: int = -1
    """Chunk after which the parameters were last evaluated."""
    seconds: float = 0.0
    """Time of the checkpoint on the run's clock."""
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    solved_at: list[float | None] = dataclasses.field(default_factory=list)
    """Seconds until each learner solved the environment; None if it has not."""
    held_at: list[float | None] = dataclasses.field(default_factory=list)
    """Seconds until each learner held the solve return; None if it has not."""
    held_rows: list[int | None] = dataclasses.field(default_factory=list)
    """Rows of each learner until it held the solve return; None if it has not."""
    series: list[int] = dataclasses.field(default_factory=list)
    """Length of the current series of evaluations that reached the solve return, per learner."""
    series_rows: list[int | None] = dataclasses.field(default_factory=list)
    """Rows of each learner at the last evaluation that counted in the series."""
    passed: list[list[bool]] = dataclasses.field(default_factory=list)
    """For each learner one flag per evaluation, in order: True if it reached the solve return."""
    diverged_at: list[int | None] = dataclasses.field(default_factory=list)
    """Chunk in which each learner diverged; None if it has not."""
    skipped: list[int] = dataclasses.field(default_factory=list)
    """Gradient steps of each learner that the guard undid, in completed chunks."""
    rollbacks: int = 0
    env_restarts: int = 0
    """Number of restarts of the environments on the host after a failure."""
    warned: list[str] = dataclasses.field(default_factory=list)
    """Event names of the warnings already recorded."""
    totals: Record = dataclasses.field(default_factory=dict)
    """Rows, environment steps and gradient steps, over all learners."""
    last: Record | None = None
    """The last evaluation."""
    best: Record | None = None
    """The best evaluation of a learner."""
    best_returns: list[float | None] = dataclasses.field(default_factory=list)
    """Mean return of the best evaluation of each learner; None before its first evaluation."""
    partial: Record | None = None
    """Finished part of an interrupted chunk: ``iterations``, ``seconds`` and ``metrics``; None
    between chunks."""
    part_iterations: int | None = None
    """Iterations per part of a chunk; the clock and the signals are checked after each part. None
    if chunks are not divided."""

    @classmethod
    def of(cls, learners: int) -> Progress:
        """Return the initial progress of a run with this many learners."""
        return cls(
            solved_at=[None] * learners,
            held_at=[None] * learners,
            held_rows=[None] * learners,
            series=[0] * learners,
            series_rows=[None] * learners,
            passed=[[] for _ in range(learners)],
            diverged_at=[None] * learners,
            skipped=[0] * learners,
            best_returns=[None] * learners,
        )

    def restore(self, saved: Record) -> None:
        """Restore every value from a checkpoint; missing values get their initial value."""
        start = dataclasses.asdict(Progress.of(len(self.solved_at)))
        for name, value in {**start, **saved}.items():
            setattr(self, name, value)

    @property
    def skipped_gradient_steps(self) -> list[int]:
        """Gradient steps of each learner that the guard undid."""
        if self.partial is None:
            return self.skipped
        return (np.asarray(self.skipped) + self.partial["metrics"]["skipped"]).tolist()

    @property
    def learned_nothing(self) -> bool:
        """True if the guard undid every gradient step of every learner."""
        steps = self.totals["gradient_steps"]
        return 0 < steps == sum(self.skipped_gradient_steps)

    @property
    def evaluated(self) -> bool:
        """True if the current parameters have been evaluated."""
        return self.judged == self.chunk and self.partial is None

    @property
    def all_live_learners_solved(self) -> bool:
        """True if some learner solved the environment and every learner solved it or diverged."""
        return self._all_live_learners(self.solved_at)

    @property
    def all_live_learners_held(self) -> bool:
        """True if some learner held the solve return and every learner held it or diverged."""
        return self._all_live_learners(self.held_at)

    def _all_live_learners(self, reached_at: Sequence[float | None]) -> bool:
        outcomes = zip(reached_at, self.diverged_at, strict=True)
        live_without = any(reached is None and diverged is None for reached, diverged in outcomes)
        return any(seconds is not None for seconds in reached_at) and not live_without

    def leader(self, means: Sequence[float]) -> int:
        """Return the learner with the highest return.

        A diverged learner is returned only if all have diverged.
        """
        sound = [index for index, chunk in enumerate(self.diverged_at) if chunk is None]
        known = np.nan_to_num(np.asarray(means), nan=-math.inf)
        return max(sound or range(len(means)), key=lambda index: known[index])

    def standing(self, leader: int) -> Record:
        """Return the additional fields of a population's evaluation record; {} for one learner."""
        if len(self.solved_at) == 1:
            return {}
        return {
            "leader": leader,
            "learners_solved": sum(seconds is not None for seconds in self.solved_at),
            "learners_held": sum(seconds is not None for seconds in self.held_at),
        }
