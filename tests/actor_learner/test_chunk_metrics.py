"""Metrics of a chunk of a run with asynchronous actors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.time_use import TimeUse
from jaxdqn.run.chunks import add_parts


def test_parts_of_a_chunk_without_gradient_steps_add_up() -> None:
    state: Any = SimpleNamespace(agent=SimpleNamespace(params={"w": np.ones(2)}))
    metrics = ChunkTotals(1, TimeUse()).metrics(state, 2)
    part = {"iterations": 1, "seconds": 0.5, "metrics": metrics._asdict()}
    added = add_parts(part, part)
    assert (added["iterations"], added["metrics"]["gradient_steps"]) == (2, 0)
    assert added["metrics"]["extra"]["worker_restarts"] == 2.0
    assert added["metrics"]["diagnostics"] == {}
