"""Calls to actors, and transfer of their rows to shards; runs in the driver process."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.copies import Copies
from jaxdqn.actor_learner.deaths import Deaths
from jaxdqn.actor_learner.host_actor import HostActorWorker
from jaxdqn.actor_learner.initial_priorities import InitialPriorities
from jaxdqn.actor_learner.ray_cluster import ObjectLost, RayCluster, Resources, WorkerDied
from jaxdqn.actor_learner.time_use import TimeUse
from jaxdqn.actor_learner.workers import ActorWorker, ShardReport, ShardWorker
from jaxdqn.config.config import Config
from jaxdqn.config.host_envs import is_host_env
from jaxdqn.types import Counters, Row, TrainState, counter_int, make_counter

_MOST_ADDS = 2
"""Maximum number of blocks in flight to one shard; with more the learner waits."""
_RETRY_SECONDS = 0.1
"""Delay until Ray has detected the end of a worker's process."""
_RETRY_OPTIONAL_SECONDS = 1.0
"""Interval between calls to an actor that waits for resources."""


class ActorCount(NamedTuple):
    """Minimum and maximum number of actors of a run."""

    least: int
    """Number of actors that the run needs."""
    most: int
    """Number of actors if the cluster has resources for them. The environments are divided over
    this number."""


class _Call(NamedTuple):
    """Call in flight to an actor."""

    actor: int
    rows: Any
    """Future of the rows."""
    num_rows: int


class Streams:
    """Actors, each with one call in flight, and the shards that store their rows.

    An actor starts its next block only after ``take``, so no queue grows.

    Args:
      config: configuration of the run.
      cluster: Ray cluster of the workers.
      actors: minimum and maximum number of actors.
      shards: number of shards.
      times: clock of the driver process.
      resources: resources of one actor.
      parameters_every: number of blocks after which an actor gets the newest parameters.
    """

    def __init__(
        self,
        config: Config,
        cluster: RayCluster,
        actors: ActorCount,
        shards: int,
        times: TimeUse,
        resources: Resources,
        parameters_every: int = 1,
    ) -> None:
        self._config, self._cluster, self._times = config, cluster, times
        self._least, self._num_actors, self._num_shards = *actors, shards
        self._resources, self._parameters_every = resources, parameters_every
        self._workers: list[Any] = []
        self.deaths = Deaths()
        """Workers without which the run waits."""
        self._absences = Deaths()
        """Actors without which the run continues."""
        self._present: set[int] = set()
        """Actors whose last call succeeded."""
        self._taken = self._stored = self._lost = self._duplicated = 0
        self.rows = self.env_steps = self.steps = 0
        """Numbers of rows taken, of environment steps among them, and of gradient steps."""

    def start(
        self,
        key_data: np.ndarray,
        example: Row,
        iterations: int,
        shard_config: Config,
        initial: InitialPriorities,
    ) -> None:
        """Start the workers.

        Args:
          key_data: key data of the run.
          example: row of zeros.
          iterations: number of iterations of a block.
          shard_config: configuration of the shards; it has the size of the batches they draw.
          initial: initial priorities.
        """
        config, cluster = self._config, self._cluster
        rows = config.rollout_length * (config.num_envs // self._num_actors)
        self._rows_of = {"block": iterations * rows, "warm_up": config.warmup_iterations * rows}
        """Number of rows of a call, by its method."""
        for worker in self._workers:
            cluster.stop(worker)
        cluster.release()
        num_envs = config.num_envs // self._num_actors
        of_shard = [range(s, self._num_actors, self._num_shards) for s in range(self._num_shards)]
        self.shards = [
            cluster.start(ShardWorker, shard_config, example, num_envs, len(own), initial)
            for own in of_shard
        ]
        worker = HostActorWorker if is_host_env(config.env) else ActorWorker
        self._actors = [
            cluster.start(
                *(worker, config, key_data, self._num_actors, index, iterations, initial),
                resources=None if self._needs(index) else self._resources,
            )
            for index in range(self._num_actors)
        ]
        self._workers = [*self.shards, *self._actors]
        self.masses, self._incarnations = [0.0] * self._num_shards, [0] * self._num_actors
        self._sent = [0] * self._num_actors
        """Number of blocks of each actor that were sent to its shard."""
        self._copies = Copies(cluster, self._times, self._num_actors, self._parameters_every)
        self.shard_seconds = [0.0] * self._num_shards
        """Seconds for which each shard has worked since the process started."""
        self._adds: list[deque[tuple[Any, int]]] = [deque() for _ in self.shards]
        self._calls: dict[Any, _Call] = {}
        self.deaths.clear()
        self._absences.clear()
        self._present.clear()
        self._retries: dict[int, float] = {}
        """Times at which to call actors again, by index of the actor."""

    def _needs(self, index: int) -> bool:
        """Return whether the run needs this actor."""
        return index < self._least

    def warm_up(self, state: TrainState, totals: ChunkTotals) -> None:
        """Run the warm-up, and start the first blocks.

        The required actors collect their parts of the warm-up. If optional actors are absent,
        blocks of the present ones replace their parts.
        """
        self.count(state)
        config = self._config
        enough = self.rows + config.warmup_iterations * config.rows_per_iteration
        for index in range(self._num_actors):
            self._call("warm_up" if self._needs(index) else "block", index, state)
        idle: deque[int] = deque()
        while self.rows < enough or not totals.seen.issuperset(range(self._least)):
            self.retry(state)
            for future in self._cluster.wait(self.futures, self.seconds_to_retry):
                if (ready := self._receive(future, totals)) is not None:
                    idle.append(ready)
            # An actor that starts early does not act on while the others start.
            while idle and self.rows + self._expected_rows < enough:
                self._call("block", idle.popleft(), state)
            self.deaths.report()
        for index in idle:
            self._call("block", index, state)
        for shard in range(self._num_shards):
            self.settle_adds(shard)

    @property
    def _expected_rows(self) -> int:
        """Number of rows of the calls in flight, without those to actors that may not start."""
        return sum(
            call.num_rows
            for call in self._calls.values()
            if self._needs(call.actor) or call.actor in self._present
        )

    @property
    def futures(self) -> list[Any]:
        """Futures of the blocks that have not been taken."""
        return list(self._calls)

    def owns(self, future: Any) -> bool:
        """Return whether a future belongs to a block."""
        return future in self._calls

    @property
    def rows_of_process(self) -> dict[str, int]:
        """Rows since the process started: taken from actors, stored by shards, lost on their way to
        a shard, received twice by a shard, and in flight to a shard."""
        return {
            "taken": self._taken,
            "stored": self._stored,
            "lost": self._lost,
            "duplicated": self._duplicated,
            "on_their_way": sum(rows for adds in self._adds for _, rows in adds),
        }

    @property
    def restarts(self) -> int:
        """Number of times that a worker died."""
        return self.deaths.count + self._absences.count

    @property
    def present(self) -> int:
        """Number of running actors."""
        return len(self._present)

    @property
    def adds_in_flight(self) -> int:
        """Number of blocks in flight to shards."""
        return sum(map(len, self._adds))

    @property
    def can_draw(self) -> bool:
        """True if a shard has rows that can be drawn."""
        return any(self.masses)

    @property
    def use_of_waiting(self) -> str:
        """Name in ``USES`` of the time in which the process waits for blocks."""
        return "recovery" if self.deaths else "rows"

    @property
    def seconds_to_retry(self) -> float | None:
        """Seconds until the next retry of an actor that died; None if no actor has."""
        if not self._retries:
            return None
        return max(0.0, min(self._retries.values()) - time.monotonic())

    def retry(self, state: TrainState) -> None:
        """Call the actors whose retry is due."""
        now = time.monotonic()
        for index in [index for index, due in self._retries.items() if due <= now]:
            del self._retries[index]
            self._call("block", index, state)

    def take(self, future: Any, state: TrainState, totals: ChunkTotals) -> None:
        """Take a finished block: send its rows to their shard, and start the actor's next block."""
        index = self._receive(future, totals)
        if index is not None:
            self._call("block", index, state)

    def _receive(self, future: Any, totals: ChunkTotals) -> int | None:
        """Send the rows of a finished block to their shard.

        Returns:
          The index of the actor; None if the block was lost.
        """
        call = self._calls.pop(future)
        index = call.actor
        try:
            info = self._cluster.result(future)
        except (WorkerDied, ObjectLost):
            self._lose_actor(index)
            return None
        for deaths in (self.deaths, self._absences):
            deaths.note_life(f"actor {index}")
        self._present.add(index)
        shard = index % self._num_shards
        ring, number = index // self._num_shards, self._sent[index]
        add = self.shards[shard].add.remote(ring, number, call.rows)
        self._sent[index] += 1
        self._adds[shard].append((add, int(info.metrics.rows)))
        # Count before the wait, which a stop request may end.
        totals.add_block(index, info, self.steps)
        self.rows += int(info.metrics.rows)
        self._taken += int(info.metrics.rows)
        self.env_steps += int(info.metrics.env_steps)
        while len(self._adds[shard]) > _MOST_ADDS:
            self._settle_add(shard)
        return index

    def _lose_actor(self, index: int) -> None:
        """Record the death of an actor, and schedule a retry."""
        self._incarnations[index] += 1
        self._copies.forget(index)
        self._present.discard(index)
        needed = self._needs(index)
        # The node of an optional actor may have left the cluster.
        (self.deaths if needed else self._absences).note_death(f"actor {index}")
        wait = _RETRY_SECONDS if needed else _RETRY_OPTIONAL_SECONDS
        self._retries[index] = time.monotonic() + wait

    def _call(self, method: str, index: int, state: TrainState) -> None:
        call = getattr(self._actors[index], method).options(num_returns=2)
        copy = self._copies.of_actor(index, state, self.steps)
        arguments = (copy, self.rows, self._incarnations[index])
        rows, info = call.remote(*arguments)
        self._calls[info] = _Call(index, rows, self._rows_of[method])

    def publish(self, state: TrainState) -> Any:
        """Return a reference to the newest parameters."""
        return self._copies.newest(state, self.steps)

    def settle_adds(self, shard: int) -> None:
        """Wait until a shard has stored all rows that were sent to it."""
        while self._adds[shard]:
            self._settle_add(shard)

    def _settle_add(self, shard: int) -> None:
        with self._times.spent("draws"):
            add, rows = self._adds[shard][0]
            try:
                report: ShardReport = self._cluster.result(add)
            except WorkerDied:
                self._adds[shard].popleft()
                self._lost += rows
                self.lose(shard)
                return
            except ObjectLost:  # the node of the actor has left before the shard had the rows
                self._adds[shard].popleft()
                self._lost += rows
                return
        self._adds[shard].popleft()
        self.masses[shard] = report.mass
        self._stored += report.stored
        self._duplicated += report.duplicated
        self.shard_seconds[shard] += report.seconds
        self.deaths.note_life(f"shard {shard}")

    def lose(self, shard: int) -> None:
        """Record the death of a shard: its rings are empty until blocks arrive."""
        self.note_death(f"shard {shard}")
        self.masses[shard] = 0.0

    def note_death(self, worker: str) -> None:
        """Record a failed call to a worker, and wait until Ray has detected its death."""
        self.deaths.note_death(worker)
        with self._times.spent("recovery"):
            time.sleep(_RETRY_SECONDS)

    def count(self, state: TrainState) -> None:
        """Set the counts to the counters of a state."""
        counters = state.counters
        self.rows, self.env_steps = counter_int(counters.rows), counter_int(counters.env_steps)
        self.steps = counter_int(counters.gradient_steps)

    def counted(self, state: TrainState) -> TrainState:
        """Return the state with its counters set to the counts."""
        counts = (self.rows, self.env_steps, self.steps)
        return state._replace(counters=Counters(*map(make_counter, counts)))
