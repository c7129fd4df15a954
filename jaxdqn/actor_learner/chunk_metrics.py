"""Metrics of a chunk of a run with asynchronous actors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxdqn.actor_learner.group_learner import no_metrics
from jaxdqn.actor_learner.time_use import Limits, TimeUse
from jaxdqn.actor_learner.workers import BlockInfo, GradientInfo
from jaxdqn.training.metrics import reduce_metrics
from jaxdqn.types import Metrics, TrainState

_OF_ACTING = ("rows", "env_steps", "episodes", "return_sum", "length_sum", "illegal")
_FATES = ("lost", "duplicated")
"""Rows that are counted in the metrics since the process started."""
_WAITS = ("rows", "draws", "gradients", "recovery")
"""Uses of time in which the driver process is idle."""


class Workers(Protocol):
    """Actors and shards."""

    @property
    def restarts(self) -> int:
        """Number of deaths since the process started."""

    @property
    def present(self) -> int:
        """Number of running actors."""

    @property
    def rows_of_process(self) -> dict[str, int]:
        """Rows since the process started, by what became of them."""

    @property
    def shard_seconds(self) -> Sequence[float]:
        """Seconds for which each shard has worked since the process started."""


class ChunkTotals:
    """Blocks, gradients and gradient steps since the start of a chunk.

    Args:
      actors: number of actors.
      times: clock of the driver process.
      learners: number of learners of a parameter server; 0 without one.
      shard_seconds: seconds for which each shard has worked so far.
      limits: time for which the learner and the actors waited for each other so far.
    """

    def __init__(
        self,
        actors: int,
        times: TimeUse,
        learners: int = 0,
        shard_seconds: Sequence[float] = (),
        limits: Limits | None = None,
    ) -> None:
        self._started = time.perf_counter()
        self._shards_before = list(shard_seconds)
        self._limits = Limits() if limits is None else limits
        self._held_before = self._limits.by_learner
        self._times, self._before = times, times.seconds()
        self._blocks: list[BlockInfo] = []
        self._ages: list[float] = []
        self._groups: list[Metrics] = []
        self._sample_ages: list[Any] = []
        self._rows = [0] * actors
        self._acted = [0.0] * actors
        """Seconds of acting of each actor."""
        self._gradients: list[list[GradientInfo]] = [[] for _ in range(learners)]
        self._staleness: list[int] = []
        self._queues: dict[str, list[int]] = {"blocks": [], "gradients": [], "adds": []}
        self.seen: set[int] = set()
        """Actors that have sent a block."""
        self.gradients_dropped = 0
        """Number of gradients dropped because they exceeded the maximum staleness."""

    def add_block(self, index: int, info: BlockInfo, gradient_steps: int) -> None:
        """Count a block of an actor that was taken after ``gradient_steps`` gradient steps."""
        self._blocks.append(info)
        self._ages.append(float(gradient_steps - info.gradient_steps))
        self._rows[index] += int(info.metrics.rows)
        self._acted[index] += info.seconds
        self.seen.add(index)

    def add_gradient(self, learner: int, staleness: int, info: GradientInfo) -> None:
        """Count a gradient that a learner has computed."""
        self._gradients[learner].append(info)
        self._staleness.append(staleness)

    def add_group(self, metrics: Metrics, sample_ages: Any) -> None:
        """Count a group of gradient steps."""
        self._groups.append(metrics)
        self._sample_ages.append(np.ravel(sample_ages))

    def add_queues(self, **lengths: int) -> None:
        """Record the lengths of queues: finished blocks, finished gradients, and blocks in flight
        to a shard."""
        for name, length in lengths.items():
            self._queues[name].append(length)

    def metrics(self, state: TrainState, workers: Workers) -> Metrics:
        """Return the metrics of the chunk that ends with ``state``.

        Every metric is a rate, a share or a state, because the parts of a long chunk are averaged.

        Args:
          state: state at the end of the chunk.
          workers: actors and shards at the end of the chunk.
        """
        finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves(
            jax.device_get(state.agent.params))]  # fmt: skip
        result = _reduced(self._groups) if self._groups else jax.device_get(no_metrics())
        result = result._replace(**{"lost": np.int32(not all(finite)), **self._of_acting()})
        ages = np.concatenate(self._sample_ages) if self._sample_ages else ()
        extra = {
            "parameter_age": _mean(self._ages),
            "sample_age": _mean(ages),
            "worker_restarts": float(workers.restarts),
            "actors": float(workers.present),
            **{f"rows_{name}": float(workers.rows_of_process[name]) for name in _FATES},
            **self._shares(workers),
        }
        if self._gradients:
            extra |= self._of_gradients()
        values: Any = {name: np.float32(value) for name, value in extra.items()}
        return result._replace(extra=values)

    def _shares(self, workers: Workers) -> dict[str, float]:
        """Return shares of the chunk's time, rates, and mean lengths of queues."""
        seconds = time.perf_counter() - self._started
        used = {use: after - self._before[use] for use, after in self._times.seconds().items()}
        owner = "server" if self._gradients else "learner"
        acting = max(1, workers.present, len(self.seen))
        shares = {
            f"{owner}_idle_share": sum(used[use] for use in _WAITS) / seconds,
            **{f"{owner}_{use}_wait_share": used[use] / seconds for use in _WAITS},
            f"{owner}_busy_share": used["learn"] / seconds,
            f"{owner}_parameters_share": used["parameters"] / seconds,
            "actor_busy_share": sum(self._acted) / seconds / acting,
            "actor_held_share": (self._limits.by_learner - self._held_before) / seconds,
        }
        for index, (rows, acted) in enumerate(zip(self._rows, self._acted, strict=True)):
            shares[f"actor_{index}_rows_per_second"] = rows / seconds
            shares[f"actor_{index}_busy_share"] = acted / seconds
        both = zip(self._shards_before, workers.shard_seconds, strict=True)
        for index, (before, after) in enumerate(both):
            shares[f"shard_{index}_busy_share"] = (after - before) / seconds
        for name, lengths in self._queues.items():
            shares[f"{name}_queue_length"] = _mean(lengths)
        for index, gradients in enumerate(self._gradients):
            shares[f"learner_{index}_gradients_per_second"] = len(gradients) / seconds
            shares[f"learner_{index}_busy_share"] = sum(g.seconds for g in gradients) / seconds
        return shares

    def _of_gradients(self) -> dict[str, float]:
        return {
            "gradient_staleness": _mean(self._staleness),
            "gradient_staleness_max": float(max(self._staleness, default=0)),
            "gradients_dropped_share": self.gradients_dropped / max(1, len(self._staleness)),
        }

    def _of_acting(self) -> dict[str, Any]:
        blocks = [block.metrics for block in self._blocks]
        if not blocks:  # all rows of the chunk came with the last block of the previous chunk
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
