"""Metrics of a chunk of a run with asynchronous actors."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from jaxdqn.actor_learner.group_learner import no_metrics
from jaxdqn.actor_learner.workers import BlockInfo
from jaxdqn.training.metrics import reduce_metrics
from jaxdqn.types import Metrics, TrainState

_OF_ACTING = ("rows", "env_steps", "episodes", "return_sum", "length_sum", "illegal")


class ChunkTotals:
    """Blocks and groups of gradient steps since the start of a chunk."""

    def __init__(self, actors: int) -> None:
        self._started = time.perf_counter()
        self._blocks: list[BlockInfo] = []
        self._ages: list[float] = []
        self._groups: list[Metrics] = []
        self._sample_ages: list[Any] = []
        self._rows = [0] * actors
        self.seen: set[int] = set()
        """Actors that have sent a block."""
        self.waited_for_rows = 0.0
        """Seconds in which the learner waited for actors."""
        self.waited_for_draws = 0.0
        """Seconds in which it waited for shards."""

    def add_block(self, index: int, info: BlockInfo, gradient_steps: int) -> None:
        """Count a block of an actor, taken after ``gradient_steps``."""
        self._blocks.append(info)
        self._ages.append(float(gradient_steps - info.gradient_steps))
        self._rows[index] += int(info.metrics.rows)
        self.seen.add(index)

    def add_group(self, metrics: Metrics, sample_ages: Any) -> None:
        """Count a group of gradient steps."""
        self._groups.append(metrics)
        self._sample_ages.append(sample_ages)

    def metrics(self, state: TrainState, restarts: int) -> Metrics:
        """Return the metrics of the chunk that ends with ``state``."""
        seconds = time.perf_counter() - self._started
        finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves(
            jax.device_get(state.agent.params))]  # fmt: skip
        result = _reduced(self._groups) if self._groups else jax.device_get(no_metrics())
        result = result._replace(**{"lost": np.int32(not all(finite)), **self._of_acting()})
        waited = self.waited_for_rows + self.waited_for_draws
        acted = sum(block.seconds for block in self._blocks)
        extra = {
            "parameter_age": _mean(self._ages),
            "sample_age": _mean(np.ravel(self._sample_ages)),
            "learner_idle_share": waited / seconds,
            "learner_rows_wait_share": self.waited_for_rows / seconds,
            "learner_draws_wait_share": self.waited_for_draws / seconds,
            "actor_busy_share": acted / seconds / len(self._rows),
            "worker_restarts": float(restarts),
        }
        for index, rows in enumerate(self._rows):
            extra[f"actor_{index}_rows_per_second"] = rows / seconds
        values: Any = {name: np.float32(value) for name, value in extra.items()}
        return result._replace(extra=values)

    def _of_acting(self) -> dict[str, Any]:
        blocks = [block.metrics for block in self._blocks]
        if not blocks:  # all rows of the chunk came with the last block before it
            return {}
        summed = {
            name: jax.tree.map(lambda *leaves: np.sum(leaves, axis=0, dtype=leaves[0].dtype),
                               *(getattr(block, name) for block in blocks))
            for name in _OF_ACTING
        }  # fmt: skip
        summed["epsilon"] = np.mean([block.epsilon for block in blocks], dtype=np.float32)
        return summed


def _reduced(groups: list[Metrics]) -> Metrics:
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(groups))
    return jax.device_get(reduce_metrics(stacked))


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else 0.0
