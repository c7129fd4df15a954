"""Ape-X: the driver process is the learner, and requests its batches from the shards in groups."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.group_learner import GroupLearner
from jaxdqn.actor_learner.ray_cluster import ObjectLost, RayCluster, WorkerDied
from jaxdqn.actor_learner.shard import Draws
from jaxdqn.actor_learner.streams import Streams
from jaxdqn.actor_learner.time_use import Compiled, TimeUse
from jaxdqn.actor_learner.workers import to_numpy
from jaxdqn.config.config import Config
from jaxdqn.types import Array, TrainState


class _Drawing(NamedTuple):
    shard: int
    share: float
    """Probability with which the shard was chosen."""
    future: Any
    keys: Array
    """[m], keys of the gradient steps"""


class GroupLearning:
    """Gradient steps in groups; between groups the shards draw batches and receive priorities.

    Args:
      config: configuration of the run.
      cluster: Ray cluster of the workers.
      streams: rows of the actors.
      learner: functions of the learner.
      group: m, number of gradient steps of a group.
      times: clock of the driver process.
    """

    def __init__(
        self,
        config: Config,
        cluster: RayCluster,
        streams: Streams,
        learner: GroupLearner,
        group: int,
        times: TimeUse,
    ) -> None:
        self._config, self._cluster, self._streams = config, cluster, streams
        self._times, self.unit = times, group
        iterations = -(-group // config.gradient_steps_per_iteration)
        self._next_keys = Compiled(lambda key: learner.next_keys(key, iterations), times)
        self._learn = Compiled(learner.learn, times)
        self._random = np.random.default_rng(config.seed)
        self._drawing: _Drawing | None = None
        self.learner_seconds, self.gradients_dropped = 0.0, 0

    futures: tuple[Any, ...] = ()
    """Empty, because nothing is in flight between two groups."""

    def start(self) -> None:
        """Discard the draws of earlier workers."""
        self._drawing = None

    def receive(self, future: Any, state: TrainState, totals: ChunkTotals) -> TrainState:
        """Never called, since ``futures`` is empty."""
        raise NotImplementedError

    def work(self, state: TrainState, totals: ChunkTotals, owed: int) -> tuple[TrainState, bool]:
        """Take the gradient steps of one group, if they are due and a shard can draw.

        Returns:
          The state, and True if gradient steps were taken.
        """
        can_draw = self._streams.can_draw or self._drawing is not None
        if owed < self.unit or not can_draw:
            return state, False
        return self._learn_group(state, totals), True

    def _learn_group(self, state: TrainState, totals: ChunkTotals) -> TrainState:
        streams = self._streams
        state = self._start_drawing(state)
        drawing, self._drawing = self._drawing, None
        assert drawing is not None
        draws = self._result(drawing)
        if draws is None:
            return state
        streams.masses[drawing.shard] = float(draws.mass)
        state = self._start_drawing(state)  # draw the next group during these gradient steps
        share = np.float32(drawing.share)
        info = draws.info._replace(probabilities=draws.info.probabilities * share)
        state = streams.counted(state)
        with self._times.spent("learn") as spent:
            state, priorities, metrics = self._learn(state, drawing.keys, draws.batches, info)
            priorities = to_numpy(priorities)
        self.learner_seconds += spent.seconds
        indices = draws._replace(batches=(), ages=())
        streams.shards[drawing.shard].update.remote(indices, priorities)
        streams.steps += self.unit
        totals.add_group(metrics, draws.ages)
        return state

    def _result(self, drawing: _Drawing) -> Draws | None:
        """Return the draws; None if the shard has died or cannot draw."""
        streams, shard = self._streams, drawing.shard
        with self._times.spent("draws"):
            try:
                draws: Draws | None = self._cluster.result(drawing.future)
            except WorkerDied:
                streams.lose(shard)
                draws = None
            except ObjectLost:  # with the node of the shard, whose death the next call detects
                draws = None
        if draws is None:
            streams.masses[shard] = 0.0
            for each in range(len(streams.shards)):
                streams.settle_adds(each)
        else:
            streams.deaths.note_life(f"shard {shard}")
        return draws

    def _start_drawing(self, state: TrainState) -> TrainState:
        masses = np.asarray(self._streams.masses)
        if self._drawing is not None or masses.sum() == 0:
            return state
        shares = masses / masses.sum()
        shard = int(self._random.choice(len(masses), p=shares))
        key, keys = self._next_keys(state.key)
        keys = keys[: self.unit]
        data = np.asarray(jax.random.key_data(keys[:, 0]))
        future = self._streams.shards[shard].sample.remote(data, np.asarray(state.hyper.gamma))
        self._drawing = _Drawing(shard, float(shares[shard]), future, keys[:, 1])
        return state._replace(key=key)
