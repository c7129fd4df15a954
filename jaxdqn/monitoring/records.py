"""Records of chunks and evaluations: plain Python values, of one learner or of a population."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.storage.jsonl import Record
from jaxdqn.training.evaluation import EvalInfo
from jaxdqn.types import Metrics

_AVERAGED = ("loss", "grad_norm", "q_mean", "epsilon")


def learner_identity(config: Config, index: int) -> Record:
    """Return the index, the seed and the swept hyper-parameters of a learner of a population."""
    point, seed = divmod(index, config.num_seeds)
    return {"learner": index, "seed": config.seed + seed, **config.sweep_points[point]}


def chunk_record(metrics: Metrics, seconds: float) -> Record:
    """Return the record of a chunk: totals and means, and for a population each learner's values.

    A mean over learners omits non-finite values, so that a diverged learner does not hide the
    others.

    Args:
      metrics: metrics with leaves [], or [P] for a population.
      seconds: duration of the chunk.
    """
    episodes = np.asarray(metrics.episodes)
    averaged = {name: getattr(metrics, name) for name in _AVERAGED} | metrics.extra

    def per_episode(total: Any) -> Any:
        return np.where(episodes > 0, total / np.maximum(episodes, 1), np.nan)

    def over_learners(total: Any) -> float | None:
        # Average the means of the learners rather than all episodes: in some environments a worse
        # learner finishes more episodes and would get more weight.
        mean = mean_of_finite(per_episode(total))
        return None if math.isnan(mean) else mean

    record: Record = {
        "env_steps_per_second": int(np.sum(metrics.env_steps)) / seconds,
        "gradient_steps_per_second": int(np.sum(metrics.gradient_steps)) / seconds,
        "episodes": int(np.sum(episodes)),
        "return_mean": over_learners(metrics.return_sum),
        "length_mean": over_learners(metrics.length_sum),
        **{name: mean_of_finite(value) for name, value in averaged.items()},
        "skipped": int(np.sum(metrics.skipped)),
    }
    record |= {name: _over_learners(leaf, metrics) for name, leaf in _diagnostics(metrics)}
    averagings = int(np.sum(metrics.averagings))
    if averagings:
        record["replica_gap"] = float(np.sum(metrics.gap_sum)) / averagings
    if np.ndim(metrics.loss):
        record["learners"] = {
            "return_mean": per_episode(metrics.return_sum).tolist(),
            "length_mean": per_episode(metrics.length_sum).tolist(),
            **{name: np.asarray(value, float).tolist() for name, value in averaged.items()},
            "skipped": np.asarray(metrics.skipped).tolist(),
            **{name: leaf.tolist() for name, leaf in _diagnostics(metrics)},
        }
    return record


def _diagnostics(metrics: Metrics) -> list[tuple[str, np.ndarray]]:
    """Return the diagnostics by name, leaves [...] or [P, ...]."""
    found = dict(metrics.diagnostics)
    return [(name, np.asarray(leaf, np.float64)) for name, leaf in found.items()]


def _over_learners(leaf: np.ndarray, metrics: Metrics) -> Any:
    """Return a diagnostic as plain values; for a population, the mean of the finite values."""
    if np.ndim(metrics.loss) == 0:
        return leaf.tolist()
    finite = np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
    return (leaf[finite].mean(axis=0) if finite.any() else np.full(leaf.shape[1:], np.nan)).tolist()


def evaluation_record(info: EvalInfo) -> Record:
    """Return the record of an evaluation, and for a population each learner's mean return.

    For a population the statistics omit non-finite returns.

    Args:
      info: results with leaves [N] for N episodes, or [P, N] for a population.
    """
    returns, lengths = np.asarray(info.returns, np.float64), np.asarray(info.lengths)
    included = returns.ravel()
    if returns.ndim > 1 and np.isfinite(included).any():
        included = included[np.isfinite(included)]
    with np.errstate(invalid="ignore"):  # the standard deviation with an infinite return is NaN
        deviation = float(included.std(ddof=1)) if included.size > 1 else 0.0
    record: Record = {
        "episodes": returns.size,
        "return_mean": float(included.mean()),
        "return_std": deviation,
        "return_min": float(np.min(included)),
        "return_max": float(np.max(included)),
        "length_mean": float(lengths.mean()),
        "distinct_episodes": sum(distinct_episodes(info)),
    }
    if np.size(info.terminated):
        record["terminated_share"] = float(np.mean(info.terminated))
    if returns.ndim > 1:
        record["learners"] = mean_returns(info)
        record["learners_distinct_episodes"] = distinct_episodes(info)
    return record


def distinct_episodes(info: EvalInfo) -> list[int]:
    """Return the number of distinct episodes of each learner, [P], or [1] for a single learner.

    Episodes are equal if their return, their length, and the digest of their observations, actions
    and rewards are equal. In a deterministic environment a greedy policy repeats the same episode
    from the same start. Many episodes may then be identical, and their standard error is
    meaningless.
    """
    compared = (info.returns, info.lengths, info.digests)
    leaves = [np.atleast_2d(np.asarray(leaf)) for leaf in compared]
    return [len(set(zip(*(leaf[row].tolist() for leaf in leaves), strict=True)))
            for row in range(len(leaves[0]))]  # fmt: skip


def few_distinct(record: Record) -> bool:
    """Return True if fewer than a tenth of the episodes of an evaluation are distinct."""
    return 10 * record["distinct_episodes"] < record["episodes"]


def mean_returns(info: EvalInfo) -> list[float]:
    """Return the mean return of each learner, [P], or [1] for a single learner."""
    returns = np.asarray(info.returns, np.float64)
    return np.atleast_2d(returns).mean(axis=1).tolist()


def select_learner(info: EvalInfo, learner: int) -> EvalInfo:
    """Select the results of one learner: leaves [P, N] or [N] -> [N]."""
    return jax.tree.map(lambda leaf: np.atleast_2d(np.asarray(leaf))[learner], info)


def mean_of_finite(values: Any) -> float:
    """Return the mean of the finite values; NaN if there are none."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    return float(values[finite].mean()) if finite.any() else math.nan
