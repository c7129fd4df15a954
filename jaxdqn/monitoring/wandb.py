"""Weights & Biases: metrics, histograms and configuration, sent by the package ``wandb``."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxdqn.monitoring.background import in_background
from jaxdqn.monitoring.figures import (
    Figures,
    figures_of,
    finite,
    learner_figures,
    reject_missing,
)
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.storage.jsonl import Record
from jaxdqn.training.diagnostics import bin_limits

PROJECT = "jaxdqn"

_SECONDS_BETWEEN = 0.5
"""Minimum time between two chunks that are sent."""


def make_wandb_logger(**settings: Any) -> Logger:
    """Make a logger that sends the metrics of a run to Weights & Biases.

    The environment variables of ``wandb`` apply: ``WANDB_PROJECT``, ``WANDB_ENTITY``, and
    ``WANDB_MODE=offline``, which writes files for ``wandb sync``. The step axis is ``env_steps``.
    A chunk that ends within half a second of the last one sent is skipped, because wandb takes
    milliseconds for each; the last chunk is always sent.

    Args:
        settings: keyword arguments of ``wandb.init``; they override the defaults.

    Raises:
        ValueError: if wandb is not installed.
    """
    try:
        import wandb
    except ImportError:
        reject_missing("wandb", True, "wandb", "wandb")
    runs: list[Any] = []
    last_sent, unsent = -math.inf, None

    def send(record: Record) -> None:
        nonlocal last_sent, unsent
        runs[0].log(_values(wandb, "training", record))
        last_sent, unsent = time.monotonic(), None

    def log(kind: str, record: Record) -> None:
        nonlocal unsent
        if kind == "start":
            runs.append(_begin(wandb, record, settings))
        if not runs:
            return
        if kind == "metrics":
            unsent = record
            if time.monotonic() - last_sent >= _SECONDS_BETWEEN:
                send(record)
        elif kind == "evaluation":
            group = kind if record["purpose"] == "evaluate" else "confirmation"
            runs[0].log(_values(wandb, group, record))
        elif kind == "summary":
            runs[0].summary.update(
                {name: value for name, value in record.items() if isinstance(value, int | float)}
            )

    def close() -> None:
        if runs and unsent is not None:
            send(unsent)
        for run in runs:
            run.finish()

    return in_background(Logger(log=log, close=close, name="wandb logger"))


def _begin(wandb: Any, record: Record, settings: dict[str, Any]) -> Any:
    out = record["out"]
    given = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "config": record["config"]}
    if out is not None:
        given |= {"name": Path(out).name, "dir": out}
    run = wandb.init(**{**given, **settings})
    run.define_metric("env_steps")
    run.define_metric("*", step_metric="env_steps")
    return run


def _values(wandb: Any, group: str, record: Record) -> dict[str, Any]:
    values = _named(wandb, group, figures_of(record))
    for index, figures in enumerate(learner_figures(record)):
        values |= _named(wandb, f"learner-{index}/{group}", figures)
    return {**values, "env_steps": record["env_steps"]}


def _named(wandb: Any, group: str, figures: Figures) -> dict[str, Any]:
    values: dict[str, Any] = {
        f"{group}/{name}": value for name, value in finite(figures.scalars).items()
    }
    for name, shares in figures.histograms.items():
        limits = bin_limits(f"{name}_histogram")
        edges = np.asarray([limits[0] - abs(limits[0]), *limits])
        histogram = np.asarray(shares), edges
        values[f"{group}/{name}"] = wandb.Histogram(np_histogram=histogram)
    return values
