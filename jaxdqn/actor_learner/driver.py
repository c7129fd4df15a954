"""Loop of the driver process: collect blocks, store them in shards, and learn."""

from __future__ import annotations

import time
from typing import Any, Protocol

import jax
import numpy as np

from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.gradient_server import divided_config, make_gradient_server
from jaxdqn.actor_learner.group_learner import make_group_learner
from jaxdqn.actor_learner.group_learning import GroupLearning
from jaxdqn.actor_learner.initial_priorities import InitialPriorities, example_extras
from jaxdqn.actor_learner.ray_cluster import RayCluster, Resources
from jaxdqn.actor_learner.server_learning import ServerLearning, ServerOptions
from jaxdqn.actor_learner.streams import ActorCount, Streams
from jaxdqn.actor_learner.time_use import TimeUse
from jaxdqn.actor_learner.workers import to_numpy
from jaxdqn.config.config import Config
from jaxdqn.types import Array, Counters, Metrics, TrainState

BLOCK_ROWS = 512
"""Default number of rows of a block, rounded to iterations."""
_ONE_CPU = Resources()
_MOST_IN_GROUP = 16
"""Maximum number of gradient steps between two exchanges with a shard."""


class Learning(Protocol):
    """Interface of the two ways to learn: Ape-X and a parameter server."""

    unit: int
    """Number of gradient steps that are taken together."""
    learner_seconds: float
    """Seconds of computing gradients, mean over the learners."""
    gradients_dropped: int
    """Number of gradients dropped because they exceeded the maximum staleness."""

    @property
    def futures(self) -> Any:
        """Futures of the gradients in flight."""

    def start(self) -> None:
        """Start the learners, if they run in separate processes."""

    def work(self, state: TrainState, totals: ChunkTotals, owed: int) -> tuple[TrainState, bool]:
        """Start or take at most ``owed`` gradient steps.

        Returns:
          The state, and True if the call spent time on gradient steps.
        """

    def receive(self, future: Any, state: TrainState, totals: ChunkTotals) -> TrainState:
        """Take a result of ``futures``."""


class Driver:
    """Workers of a run, and learning from their rows.

    No blocks are taken while more than two groups of gradient steps are due. Therefore no queue
    grows, and the ratio of gradient steps to rows is that of the configuration.

    Args:
      config: configuration of the run.
      cluster: Ray cluster of the workers.
      actors: minimum and maximum number of actors.
      shards: number of shards.
      times: clock of the driver process.
      server: options of a parameter server; None for Ape-X.
      staleness_discount: as for ``make_gradient_server``.
      block_rows: number of rows of a block, rounded down to complete iterations.
      initial: initial priorities.
      actor_resources: resources of one actor.
    """

    def __init__(
        self,
        config: Config,
        cluster: RayCluster,
        actors: ActorCount,
        shards: int,
        times: TimeUse,
        server: ServerOptions | None = None,
        staleness_discount: float = 0.0,
        block_rows: int = BLOCK_ROWS,
        initial: InitialPriorities = "max",
        actor_resources: Resources = _ONE_CPU,
    ) -> None:
        self._config, self._cluster, self._times = config, cluster, times
        self._num_actors, self._server = actors.most, server
        rows = config.rollout_length * (config.num_envs // actors.most)
        # A block fills at most half of its ring.
        fits = config.replay_rows // 2 // config.rollout_length
        self.block_iterations = max(1, min(block_rows // rows, config.iterations_per_chunk, fits))
        """Iterations in which every actor sends one block."""
        self._initial = initial
        self._origin = 0, 0
        steps = config.gradient_steps_per_iteration
        self._group = max(1, min(_MOST_IN_GROUP, self.block_iterations * steps // actors.most))
        self.streams = Streams(config, cluster, actors, shards, times, actor_resources)
        common = (config, cluster, self.streams)
        self.learning: Learning
        if server is None:
            learner = make_group_learner(config)
            self.init, self._example = learner.init, learner.example
            self.learning = GroupLearning(*common, learner, self._group, times)
        else:
            functions = make_gradient_server(
                config, staleness_discount=staleness_discount, compression=server.compression
            )
            self.init, self._example = functions.init, functions.example
            self.learning = ServerLearning(*common, functions, server, times)
        self._example = self._example._replace(extras=example_extras(config, initial))

    def start(self, key: Array, state: TrainState) -> TrainState:
        """Start the workers and run the warm-up."""
        server, streams = self._server, self.streams
        shard_config = self._config
        if server is not None:
            shard_config = divided_config(shard_config, server.batches)
        with self._times.spent("start"):
            data = np.asarray(jax.random.key_data(key))
            example = to_numpy(self._example)
            streams.start(data, example, self.block_iterations, shard_config, self._initial)
            self.learning.start()
            streams.warm_up(state, self._totals())
        self._origin = streams.rows, streams.steps
        self._target_rows, self._target_steps = self._origin
        return streams.counted(state)

    def chunk(
        self, state: TrainState, iterations: int
    ) -> tuple[TrainState, tuple[Metrics, Counters]]:
        """Learn until the rows and gradient steps of this number of iterations are done.

        Blocks and groups are not divided; any excess over the target counts for the next chunk.
        """
        config, totals, streams = self._config, self._totals(), self.streams
        self._target_rows += iterations * config.rows_per_iteration
        self._target_steps += iterations * config.gradient_steps_per_iteration
        while streams.rows < self._target_rows or (
            streams.steps + self.learning.unit <= self._target_steps
        ):
            state = self._advance(state, totals)
        state = streams.counted(state)
        return state, (totals.metrics(state, streams.restarts, streams.present), state.counters)

    def _advance(self, state: TrainState, totals: ChunkTotals) -> TrainState:
        """Take the gradient steps that are due, then take the blocks and gradients that are ready.

        If no gradient step was due, wait for the first block or gradient.
        """
        streams, owed = self.streams, self.owed
        with self._times.spent("messages"):
            streams.retry(state)
            state, worked = self.learning.work(state, totals, owed)
        futures = list(self.learning.futures)
        use = "gradients" if futures and streams.use_of_waiting == "rows" else None
        if owed < 2 * self._group or not streams.can_draw:
            futures += streams.futures
        timeout = 0.0 if worked else streams.seconds_to_retry
        with self._times.spent(use or streams.use_of_waiting):
            if futures:
                ready = self._cluster.wait(futures, timeout)
            else:
                ready = []
                time.sleep(timeout or 0.0)
        blocks = [future for future in ready if streams.owns(future)]
        totals.add_queues(
            blocks=len(blocks), gradients=len(ready) - len(blocks), adds=streams.adds_in_flight
        )
        with self._times.spent("messages"):
            for future in ready:
                if streams.owns(future):
                    streams.take(future, state, totals)
                else:
                    state = self.learning.receive(future, state, totals)
        return state

    @property
    def owed(self) -> int:
        """Number of gradient steps that are due: those for the rows so far, less those taken.

        At the end of a run it is the remainder of a group and the steps for the last blocks.
        """
        rows, steps = self.streams.rows - self._origin[0], self.streams.steps - self._origin[1]
        config = self._config
        return rows * config.gradient_steps_per_iteration // config.rows_per_iteration - steps

    def _totals(self) -> ChunkTotals:
        learners = 0 if self._server is None else self._server.learners
        return ChunkTotals(self._num_actors, self._times, learners)
