"""Metrics of a chunk of a run with asynchronous actors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.group_learner import no_metrics
from jaxdqn.actor_learner.time_use import Limits, TimeUse
from jaxdqn.actor_learner.workers import BlockInfo
from jaxdqn.run.chunks import add_parts

STATE: Any = SimpleNamespace(agent=SimpleNamespace(params={"w": np.ones(2)}))


def workers(present: int = 1, shard_seconds: tuple[float, ...] = ()) -> Any:
    rows = {"lost": 3, "duplicated": 0}
    return SimpleNamespace(
        restarts=2, present=present, shard_seconds=shard_seconds, rows_of_process=rows
    )


def test_parts_of_a_chunk_without_gradient_steps_add_up() -> None:
    metrics = ChunkTotals(1, TimeUse()).metrics(STATE, workers())
    part = {"iterations": 1, "seconds": 0.5, "metrics": metrics._asdict()}
    added = add_parts(part, part)
    assert (added["iterations"], added["metrics"]["gradient_steps"]) == (2, 0)
    assert added["metrics"]["extra"]["worker_restarts"] == 2.0
    assert added["metrics"]["extra"]["rows_lost"] == 3.0
    assert added["metrics"]["diagnostics"] == {}


def test_parts_without_iterations_add_up() -> None:
    metrics = ChunkTotals(1, TimeUse()).metrics(STATE, workers())
    part = {"iterations": 0, "seconds": 0.5, "metrics": metrics._asdict()}
    added = add_parts(part, part)
    assert added["iterations"] == 0
    assert np.isfinite(added["metrics"]["extra"]["actors"])


def test_the_busy_share_of_actors_is_a_mean_over_those_present(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = Limits()
    totals = ChunkTotals(8, TimeUse(), 0, (1.0, 0.0), limits)
    # Two of eight actors run, and act all the time.
    block = jax.device_get(no_metrics())
    for index in (0, 1):
        totals.add_block(index, BlockInfo(block, 0, 10.0), 0)
    limits.by_learner = 2.5
    monkeypatch.setattr(totals, "_started", totals._started - 10.0)
    extra = totals.metrics(STATE, workers(2, (3.0, 5.0))).extra
    assert extra["actor_busy_share"] == pytest.approx(1.0, rel=0.05)
    assert extra["actor_1_busy_share"] == pytest.approx(1.0, rel=0.05)
    assert extra["actor_2_busy_share"] == 0
    assert extra["shard_0_busy_share"] == pytest.approx(0.2, rel=0.05)
    assert extra["shard_1_busy_share"] == pytest.approx(0.5, rel=0.05)
    assert extra["actor_held_share"] == pytest.approx(0.25, rel=0.05)
    # Nobody runs: the share is zero rather than not a number.
    assert ChunkTotals(1, TimeUse()).metrics(STATE, workers(0)).extra["actor_busy_share"] == 0
