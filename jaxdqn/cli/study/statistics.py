"""Statistics over seeds, after the protocol of rliable (Agarwal et al. 2021). Imports no JAX.

The interquartile mean, with a 95 % interval of a percentile bootstrap. It is stratified: each
preset on each environment draws from its own seeds. rliable itself is not needed. The draws are
seeded, so that the same results give the same report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdqn.storage.jsonl import Record

REPETITIONS = 10_000
"""Draws of the bootstrap."""
_ENDS = (2.5, 97.5)
"""Percentiles between which the interval lies."""


class Estimate(NamedTuple):
    """An interquartile mean and the ends of its interval."""

    iqm: float
    low: float
    high: float


class Curve(NamedTuple):
    """Estimates at the T evaluations that all seeds of a cell have."""

    rows: list[int]
    """[T] rows of each seed until then"""
    estimates: list[Estimate]
    """[T]"""


def iqm(values: Any) -> Any:
    """Return the mean of the middle half: of n values n//4 are cut off at each end.

    This is ``scipy.stats.trim_mean(values, 0.25, axis=-1)``.

    Args:
        values: [..., n]

    Returns:
        [...] float64
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=-1)
    count = ordered.shape[-1]
    return ordered[..., count // 4 : count - count // 4].mean(axis=-1)


def estimate(values: Sequence[float]) -> Estimate:
    """Return the interquartile mean of seeds and its bootstrap interval.

    Args:
        values: [n], one of each seed; without any the estimate is NaN.
    """
    given = np.asarray(values, np.float64)
    if not given.size:
        return Estimate(math.nan, math.nan, math.nan)
    draws = np.random.default_rng(0).integers(0, given.size, (REPETITIONS, given.size))
    low, high = np.percentile(iqm(given[draws]), _ENDS)
    return Estimate(float(iqm(given)), float(low), float(high))


def curve_of(results: Sequence[Record]) -> Curve:
    """Return the estimates over the seeds of a cell, at the evaluations that all of them have.

    Args:
        results: of one seed each, as ``sweep_results`` describes them.
    """
    curves = [result["curve"] for result in results]
    each = [dict(zip(curve["rows"], curve["return_mean"], strict=True)) for curve in curves]
    common = sorted(set(each[0]).intersection(*each)) if each else []
    # A return that was not finite is null, and left out.
    known = [[one[row] for one in each if one[row] is not None] for row in common]
    return Curve(common, [estimate(values) for values in known])
