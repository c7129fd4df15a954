"""TensorBoard: scalars, histograms and hyper-parameters, written by tensorboardX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdqn.config.config import Config, from_dict
from jaxdqn.monitoring.background import in_background
from jaxdqn.monitoring.figures import (
    MOST_LEARNERS,
    Figures,
    figures_of,
    finite,
    learner_figures,
    plain_config,
    reject_missing,
)
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.monitoring.records import learner_identity
from jaxdqn.storage.jsonl import Record
from jaxdqn.training.diagnostics import bin_limits

FOLDER = "tensorboard"
"""Folder of the event files in a run directory."""

_RESULT = "evaluation/return_mean"
_FLUSH_SECONDS = 2


def make_tensorboard_logger(directory: str | os.PathLike[str] | None = None) -> Logger:
    """Make a logger that writes event files for TensorBoard, with ``env_steps`` as the step.

    TensorBoard shows each learner of a population as a separate run, from the folder
    ``learner-I``, with its seed and swept values as hyper-parameters.

    Args:
        directory: directory of the event files; by default ``tensorboard`` in the run directory.

    Raises:
        ValueError: if tensorboardX is not installed.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        reject_missing("tensorboard", True, "tensorboardX", "monitor")
    writers = _Writers(None if directory is None else Path(directory))

    def log(kind: str, record: Record) -> None:
        if kind == "start":
            writers.start(record)
        elif kind == "metrics":
            writers.write("training", record)
        elif kind == "evaluation":
            writers.write(kind if record["purpose"] == "evaluate" else "confirmation", record)
        elif kind == "event" and "message" in record:
            writers.note(record["message"])

    return in_background(Logger(log=log, close=writers.close, name="tensorboard logger"))


class _Writers:
    """Event files of a run and of each learner of a population.

    They are opened at the first record, which has the step at which a resumed run continues.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._start: Record = {}
        self._opened: list[Any] = []
        self._notes: list[str] = []
        self._step = 0

    def start(self, record: Record) -> None:
        self._start = record
        if self._directory is None:
            if record["out"] is None:
                raise ValueError("tensorboard: must have a directory, since the run has none")
            self._directory = Path(record["out"]) / FOLDER

    def note(self, message: str) -> None:
        self._notes.append(message)
        self._write_notes()

    def write(self, group: str, record: Record) -> None:
        self._step = record["env_steps"]
        if not self._opened:
            self._open()
        whole, *learners = self._opened
        figures = figures_of(record)
        _write(whole, group, figures, self._step)
        for writer, of_learner in zip(learners, learner_figures(record), strict=False):
            _write(writer, group, of_learner, self._step)
        self._write_notes()

    def close(self) -> None:
        if self._opened:
            from tensorboardX.summary import hparams

            for writer in self._opened:
                _, _, end = hparams({}, {_RESULT: 0.0})
                writer.file_writer.add_summary(end)
                writer.close()
        self._opened = []

    def _open(self) -> None:
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams

        assert self._directory is not None
        config = from_dict(self._start["config"])
        values = plain_config(self._start)
        folders = [(self._directory, values), *self._learners(config, values)]
        for folder, of_run in folders:
            # Events from this step on belong to a part of the run that is repeated, so drop them.
            writer = SummaryWriter(str(folder), purge_step=self._step, flush_secs=_FLUSH_SECONDS)
            experiment, begin, _ = hparams(of_run, {_RESULT: 0.0})
            writer.file_writer.add_summary(experiment)
            writer.file_writer.add_summary(begin)
            self._opened.append(writer)

    def _learners(
        self, config: Config, values: dict[str, Any]
    ) -> Sequence[tuple[Path, dict[str, Any]]]:
        assert self._directory is not None
        if not 1 < config.learners <= MOST_LEARNERS:
            return []
        return [
            (self._directory / f"learner-{index}", {**values, **learner_identity(config, index)})
            for index in range(config.learners)
        ]

    def _write_notes(self) -> None:
        if self._opened:
            for message in self._notes:
                self._opened[0].add_text("events", message, self._step)
            self._notes = []


def _write(writer: Any, group: str, figures: Figures, step: int) -> None:
    from tensorboardX.proto.summary_pb2 import Summary

    # tensorboardX.summary.scalar converts through NumPy, which is half of the time of a record.
    values = [
        Summary.Value(tag=f"{group}/{name}", simple_value=value)
        for name, value in finite(figures.scalars).items()
    ]
    for name, shares in figures.histograms.items():
        for summary in _histogram(f"{group}/{name}", name, shares):
            values.extend(summary.value)
    # One event for all values: each event costs a message to the writer's thread and a write.
    writer.file_writer.add_summary(Summary(value=values), step)


def _histogram(tag: str, name: str, shares: list[float]) -> list[Any]:
    """Return the summary of a histogram as a list; [] if the histogram is empty or not finite."""
    from tensorboardX.summary import histogram_raw

    limits = bin_limits(f"{name}_histogram")
    counts = np.asarray(shares, np.float64)
    if not np.all(np.isfinite(counts)) or counts.sum() <= 0:
        return []
    lower = np.asarray([limits[0] - abs(limits[0]), *limits[:-1]])
    middle = (lower + limits) / 2
    used = np.flatnonzero(counts)
    summary = histogram_raw(
        tag,
        float(lower[used[0]]),
        float(limits[used[-1]]),
        float(counts.sum()),
        float(counts @ middle),
        float(counts @ middle**2),
        limits.tolist(),
        counts.tolist(),
    )
    return [summary]
