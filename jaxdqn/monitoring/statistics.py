"""Statistics over seeds by the protocol of rliable (Agarwal et al. 2021); does not import JAX.

The estimate is the interquartile mean with a 95 % percentile bootstrap interval. The bootstrap is
stratified: seeds are resampled separately for each pair of preset and environment. The random
generator is seeded, so the same results always give the same report. rliable itself is not a
dependency.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdqn.storage.jsonl import Record

REPETITIONS = 10_000
"""Number of bootstrap samples."""
_PERCENTILES = (2.5, 97.5)
"""Percentiles at the ends of the interval."""


class Estimate(NamedTuple):
    """Interquartile mean and the ends of its interval."""

    iqm: float
    low: float
    high: float


class Curve(NamedTuple):
    """Estimates at the T evaluations shared by all seeds of a cell."""

    rows: list[int]
    """[T], rows of one seed before each evaluation"""
    estimates: list[Estimate]
    """[T]"""
    seconds: list[float]
    """[T], median over the seeds of the seconds before each evaluation; empty if a seed has none"""


def iqm(values: Any) -> Any:
    """Return the mean of the middle half: drop the n//4 smallest and the n//4 largest of n values.

    Equal to ``scipy.stats.trim_mean(values, 0.25, axis=-1)``.

    Args:
        values: [..., n]

    Returns:
        [...] float64
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=-1)
    count = ordered.shape[-1]
    return ordered[..., count // 4 : count - count // 4].mean(axis=-1)


def estimate(values: Sequence[float]) -> Estimate:
    """Return the interquartile mean over seeds and its bootstrap interval.

    Args:
        values: [n], one per seed; the estimate is NaN if there is none.
    """
    sample = np.asarray(values, np.float64)
    if not sample.size:
        return Estimate(math.nan, math.nan, math.nan)
    draws = np.random.default_rng(0).integers(0, sample.size, (REPETITIONS, sample.size))
    low, high = np.percentile(iqm(sample[draws]), _PERCENTILES)
    return Estimate(float(iqm(sample)), float(low), float(high))


def curve_of(results: Sequence[Record]) -> Curve:
    """Return the estimates over the seeds of a cell, at the evaluations shared by all of them.

    Args:
        results: one per seed, with the fields listed in ``study.results``.
    """
    curves = [result["curve"] for result in results]
    by_rows = [dict(zip(curve["rows"], curve["return_mean"], strict=True)) for curve in curves]
    common = sorted(set(by_rows[0]).intersection(*by_rows)) if by_rows else []
    # A return that was not finite is recorded as null and omitted here.
    finite = [[seed[row] for seed in by_rows if seed[row] is not None] for row in common]
    seconds: list[float] = []
    if curves and all("seconds" in curve for curve in curves):
        times = [dict(zip(curve["rows"], curve["seconds"], strict=True)) for curve in curves]
        seconds = [statistics.median(seed[row] for seed in times) for row in common]
    return Curve(common, [estimate(values) for values in finite], seconds)
