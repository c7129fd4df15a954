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
from jaxdqn.actor_learner.time_use import Limits, TimeUse
from jaxdqn.actor_learner.workers import to_numpy
from jaxdqn.config.config import Config
from jaxdqn.errors import RunStopped
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
      parameters_every: number of blocks after which an actor gets the newest parameters.
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
        parameters_every: int = 1,
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
        self._done = 0
        self.limits = Limits()
        """Time for which the learner and the actors waited for each other."""
        steps = config.gradient_steps_per_iteration
        self._group = max(1, min(_MOST_IN_GROUP, self.block_iterations * steps // actors.most))
        self.streams = Streams(
            config, cluster, actors, shards, times, actor_resources, parameters_every
        )
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
        """Start the workers and run the warm-up.

        Raises:
            RunStopped: if a stop is requested meanwhile.
        """
        server, streams = self._server, self.streams
        shard_config = self._config
        if server is not None:
            shard_config = divided_config(shard_config, server.batches)
        with self._times.spent("start"):
            data = np.asarray(jax.random.key_data(key))
            example = to_numpy(self._example)
            streams.start(data, example, self.block_iterations, shard_config, self._initial)
            self.learning.start()
            try:
                streams.warm_up(state, self._totals())
            except RunStopped as stopped:
                raise RunStopped(stopped.reason, "its workers started") from None
        self._origin = streams.rows, streams.steps
        self._target_rows, self._target_steps = self._origin
        return streams.counted(state)

    def chunk(
        self, state: TrainState, iterations: int
    ) -> tuple[TrainState, tuple[Metrics, Counters]]:
        """Learn until the rows and gradient steps of this number of iterations are done.

        Blocks and groups are not divided; any excess over the target counts for the next chunk.
        A stop request ends the chunk early; ``iterations_done`` is then the number of completed
        iterations.
        """
        config, totals, streams = self._config, self._totals(), self.streams
        rows, steps = self._target_rows, self._target_steps
        self._target_rows += iterations * config.rows_per_iteration
        self._target_steps += iterations * config.gradient_steps_per_iteration
        self._state, self._done = state, iterations
        try:
            while streams.rows < self._target_rows or (
                streams.steps + self.learning.unit <= self._target_steps
            ):
                self._advance(totals)
                streams.deaths.report()
        except RunStopped:
            complete = min(
                (streams.rows - rows) // config.rows_per_iteration,
                (streams.steps - steps) // config.gradient_steps_per_iteration,
            )
            self._done = max(0, min(iterations - 1, complete))
            self._target_rows = rows + self._done * config.rows_per_iteration
            self._target_steps = steps + self._done * config.gradient_steps_per_iteration
        state = streams.counted(self._state)
        return state, (totals.metrics(state, streams), state.counters)

    def iterations_done(self, iterations: int) -> int:
        """Return the number of iterations that the last chunk has completed."""
        return min(iterations, self._done)

    def _advance(self, totals: ChunkTotals) -> None:
        """Take the gradient steps that are due, then take the blocks and gradients that are ready.

        If no gradient step was due, wait for the first block or gradient. Each result is kept in
        ``_state`` at once, because a stop request may end any wait.
        """
        streams, owed = self.streams, self.owed
        started = time.perf_counter()
        with self._times.spent("messages"):
            streams.retry(self._state)
            self._state, worked = self.learning.work(self._state, totals, owed)
        futures = list(self.learning.futures)
        use = "gradients" if futures and streams.use_of_waiting == "rows" else None
        takes_blocks = owed < 2 * self._group or not streams.can_draw
        if takes_blocks:
            futures += streams.futures
        timeout = 0.0 if worked else streams.seconds_to_retry
        waits = time.perf_counter()
        with self._times.spent(use or streams.use_of_waiting):
            ready = self._cluster.wait(futures, timeout)
        now = time.perf_counter()
        if not takes_blocks:
            self.limits.by_learner += now - started
        elif use is None:
            self.limits.by_actors += now - waits
        blocks = [future for future in ready if streams.owns(future)]
        totals.add_queues(
            blocks=len(blocks), gradients=len(ready) - len(blocks), adds=streams.adds_in_flight
        )
        with self._times.spent("messages"):
            for future in ready:
                if streams.owns(future):
                    streams.take(future, self._state, totals)
                else:
                    self._state = self.learning.receive(future, self._state, totals)

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
        return ChunkTotals(
            self._num_actors, self._times, learners, self.streams.shard_seconds, self.limits
        )
