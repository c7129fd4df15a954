"""What is recorded of chunks and evaluations: plain values, of one learner or of many."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.storage.jsonl import Record
from jaxdqn.training.evaluation import EvalInfo
from jaxdqn.types import Metrics

_AVERAGED = ("loss", "grad_norm", "q_mean", "epsilon")


def learner_identity(config: Config, index: int) -> Record:
    """Return which seed and hyper-parameters a learner of a population has."""
    point, seed = divmod(index, config.num_seeds)
    return {"learner": index, "seed": config.seed + seed, **config.sweep_points[point]}


def chunk_record(metrics: Metrics, seconds: float) -> Record:
    """Return what a chunk's metrics say, over all learners, and of each where there are several.

    What is averaged over learners leaves out those in which it is not finite: one
    that has diverged does not hide the others.

    Args:
      metrics: leaves [], or [P].
      seconds: that the chunk took.
    """
    episodes = np.asarray(metrics.episodes)

    def each(total: Any) -> Any:
        return np.where(episodes > 0, total / np.maximum(episodes, 1), np.nan)

    def over_all(total: Any) -> float | None:
        # The mean over learners: the worse one is, the more episodes it has.
        mean = mean_of_finite(each(total))
        return None if math.isnan(mean) else mean

    record: Record = {
        "env_steps_per_second": int(np.sum(metrics.env_steps)) / seconds,
        "gradient_steps_per_second": int(np.sum(metrics.gradient_steps)) / seconds,
        "episodes": int(np.sum(episodes)),
        "return_mean": over_all(metrics.return_sum),
        "length_mean": over_all(metrics.length_sum),
        **{name: mean_of_finite(getattr(metrics, name)) for name in _AVERAGED},
        "skipped": int(np.sum(metrics.skipped)),
    }
    averagings = int(np.sum(metrics.averagings))
    if averagings:
        record["replica_gap"] = float(np.sum(metrics.gap_sum)) / averagings
    if np.ndim(metrics.loss):
        record["learners"] = {
            "return_mean": each(metrics.return_sum).tolist(),
            "length_mean": each(metrics.length_sum).tolist(),
            **{name: np.asarray(getattr(metrics, name), float).tolist() for name in _AVERAGED},
            "skipped": np.asarray(metrics.skipped).tolist(),
        }
    return record


def evaluation_record(info: EvalInfo) -> Record:
    """Return what an evaluation says, over all learners, and of each where there are several.

    Returns that are not finite are left out of what is said over several learners.

    Args:
      info: leaves [N], or [P, N].
    """
    returns, lengths = np.asarray(info.returns, np.float64), np.asarray(info.lengths)
    kept = returns.ravel()
    if returns.ndim > 1 and np.isfinite(kept).any():
        kept = kept[np.isfinite(kept)]
    record: Record = {
        "episodes": returns.size,
        "return_mean": float(kept.mean()),
        "return_std": float(kept.std(ddof=1)) if kept.size > 1 else 0.0,
        "return_min": float(kept.min()),
        "return_max": float(kept.max()),
        "length_mean": float(lengths.mean()),
    }
    if returns.ndim > 1:
        record["learners"] = mean_returns(info)
    return record


def mean_returns(info: EvalInfo) -> list[float]:
    """Return the mean return of each learner: P of them, or one."""
    returns = np.asarray(info.returns, np.float64)
    return np.atleast_2d(returns).mean(axis=1).tolist()


def of_one(info: EvalInfo, learner: int) -> EvalInfo:
    """Return one learner's part of an evaluation with leaves [P, N], or [N] of one learner."""
    return EvalInfo(*(np.atleast_2d(np.asarray(leaf))[learner] for leaf in info))


def mean_of_finite(values: Any) -> float:
    """Return the mean of those that are finite; NaN if none is."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    return float(values[finite].mean()) if finite.any() else math.nan
