"""Warnings about a run, each recorded as an event."""

from __future__ import annotations

import numpy as np

from jaxdqn.config.config import Config
from jaxdqn.run.holding import unholdable
from jaxdqn.run.progress import Progress
from jaxdqn.run.recorder import Recorder
from jaxdqn.storage.jsonl import Record
from jaxdqn.training.evaluation import EPSILON
from jaxdqn.types import Metrics

CLIPPED = 0.25
"""Threshold for a warning: mean probability of the targets outside the range of the atoms. If the
range contains the returns, an untrained network with its uniform distribution stays below this."""


class WarningRecorder:
    """Record every warning once in a run.

    Args:
        config: configuration of the run.
        progress: contains the warnings recorded already.
        recorder: receives the events.
    """

    def __init__(self, config: Config, progress: Progress, recorder: Recorder) -> None:
        self._config, self._progress, self._recorder = config, progress, recorder

    def check_start(self) -> None:
        """Warn if the condition that should end the run cannot occur within the budget."""
        message = unholdable(self._config)
        if message is not None:
            self._record("cannot_hold", f"warning: {message}")

    def check_chunk(self, metrics: Metrics) -> None:
        """Warn if the metrics of a chunk show clipped returns."""
        message = clipped_returns(self._config, metrics)
        if message is not None:
            self._record("clipped_returns", message)

    def warn_of_repeated_episodes(self, fresh: Record, at_epsilon: Record | None) -> None:
        """Warn that few evaluation episodes are distinct; see ``repeated_episodes``."""
        self._record("repeated_episodes", repeated_episodes(fresh, at_epsilon))

    def _record(self, event: str, message: str) -> None:
        if event not in self._progress.warned:
            self._progress.warned.append(event)
            self._recorder.log_event({"event": event, "message": message})


def clipped_returns(config: Config, metrics: Metrics) -> str | None:
    """Return a warning if the projection onto the atoms clips a large part of the targets."""
    clipped = metrics.extra.get("clipped_probability")
    if clipped is None or not np.max(clipped) > CLIPPED:
        return None
    return (
        f"warning: {np.max(clipped):.0%} of the probability of the targets lies outside the range "
        f"of the atoms, value_min={config.value_min:g} to value_max={config.value_max:g}, and is "
        "clipped: returns are not learned correctly; widen the range to contain every discounted "
        "return"
    )


def repeated_episodes(fresh: Record, at_epsilon: Record | None) -> str:
    """Return a warning that few evaluation episodes are distinct.

    Args:
      fresh: the evaluation.
      at_epsilon: epsilon-greedy evaluation, epsilon ``EPSILON``; None if it was not made.
    """
    text = ""
    if at_epsilon is not None:
        text = f"; with an epsilon-greedy policy, epsilon {EPSILON}, the return is "
        text += f"{at_epsilon['return_mean']:.2f}"
    return (
        f"warning: {fresh['distinct_episodes']} of {fresh['episodes']} evaluation episodes are "
        f"distinct, so that the mean and its error rest on few episodes{text}"
    )
