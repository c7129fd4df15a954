"""What the host knows of a run and a checkpoint keeps, and what it comes to at the end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.monitoring.records import learner_identity
from jaxdqn.storage.jsonl import Record


@dataclasses.dataclass
class Progress:
    """What the host knows of a run and a checkpoint keeps: plain values."""

    chunk: int = 0
    """Chunks run."""
    judged: int = -1
    """The chunk after which the parameters were last evaluated."""
    seconds: float = 0.0
    """On the run's clock, when the checkpoint was taken."""
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    solved_at: list[float | None] = dataclasses.field(default_factory=list)
    """Seconds after which each learner had solved the environment."""
    diverged_at: list[int | None] = dataclasses.field(default_factory=list)
    """The first chunk in which each learner met something not finite."""
    rollbacks: int = 0
    totals: Record = dataclasses.field(default_factory=dict)
    last: Record | None = None
    """The last evaluation."""
    best: Record | None = None
    """The best evaluation of a learner."""
    best_returns: list[float | None] = dataclasses.field(default_factory=list)
    """The mean return of the best evaluation of each learner; None before the first."""

    @classmethod
    def of(cls, learners: int) -> Progress:
        """Return what is known of a run of so many learners before it begins."""
        return cls(
            solved_at=[None] * learners,
            diverged_at=[None] * learners,
            best_returns=[None] * learners,
        )

    @property
    def all_live_learners_solved(self) -> bool:
        """Whether a learner has solved the environment, and those that have not diverged all."""
        fates = zip(self.solved_at, self.diverged_at, strict=True)
        waited_for = any(solved is None and diverged is None for solved, diverged in fates)
        return any(seconds is not None for seconds in self.solved_at) and not waited_for

    def leader(self, means: Sequence[float]) -> int:
        """Return the learner of the highest return; what has diverged leads only its like."""
        sound = [index for index, chunk in enumerate(self.diverged_at) if chunk is None]
        known = np.nan_to_num(np.asarray(means), nan=-math.inf)
        return max(sound or range(len(means)), key=lambda index: known[index])

    def standing(self, leader: int) -> Record:
        """Return what an evaluation of a population says of its learners' places."""
        if len(self.solved_at) == 1:
            return {}
        solved = sum(seconds is not None for seconds in self.solved_at)
        return {"leader": leader, "learners_solved": solved}

    def summary(self, config: Config, again: Record | None) -> Record:
        """Return what the run came to, once it has been evaluated.

        Args:
            config: of the run.
            again: the best parameters' evaluation over fresh episodes; None if there is none.
        """
        last, best = self.last, self.best
        assert last is not None
        assert best is not None
        solved = [seconds for seconds in self.solved_at if seconds is not None]
        all_solved = len(solved) == len(self.solved_at)
        return {
            **self.totals,
            "train_seconds": self.train_seconds,
            "eval_seconds": self.eval_seconds,
            "env_steps_per_second": self.totals["env_steps"] / self.train_seconds,
            "gradient_steps_per_second": self.totals["gradient_steps"] / self.train_seconds,
            "eval_return_mean": last["return_mean"],
            "eval_return_std": last["return_std"],
            "eval_episodes": config.eval_episodes,
            "best_eval_return_mean": best["return_mean"],
            "best_eval_return_std": best["return_std"],
            "best_eval_rows": best["rows"],
            "best_fresh_return_mean": None if again is None else again["return_mean"],
            "solve_return": config.solve_return,
            "solved": all_solved,
            "seconds_to_solve": max(solved) if all_solved else None,
            "rollbacks": self.rollbacks,
            **({} if config.learners == 1 else self._of_learners(config, last, best)),
        }

    def _of_learners(self, config: Config, last: Record, best: Record) -> Record:
        """Return what a summary says of each learner of a population."""
        learners = [
            {
                **learner_identity(config, index),
                "eval_return_mean": last["learners"][index],
                "best_eval_return_mean": self.best_returns[index],
                "seconds_to_solve": self.solved_at[index],
                "diverged_at_chunk": self.diverged_at[index],
            }
            for index in range(config.learners)
        ]
        return {
            "learners_solved": sum(seconds is not None for seconds in self.solved_at),
            "best_learner": best["learner"],
            "last_learner": last["leader"],
            "learners": learners,
        }
