"""The loop of the learner's process: collect blocks, store them in shards, draw and learn."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.group_learner import GroupLearner
from jaxdqn.actor_learner.ray_cluster import RayCluster, WorkerDied
from jaxdqn.actor_learner.shard import Draws
from jaxdqn.actor_learner.workers import ActorWorker, Published, ShardWorker, to_numpy
from jaxdqn.config.config import Config
from jaxdqn.types import Array, Counters, Metrics, TrainState, counter_int, make_counter

_BLOCK_ROWS = 512
"""Rows that a block has about."""
_MOST_IN_GROUP = 16
"""Greatest number of gradient steps between two exchanges with a shard."""
_MOST_ADDS = 2
"""Blocks on their way to one shard, beyond which the learner waits."""


class _Drawing(NamedTuple):
    shard: int
    share: float
    """Probability with which the shard was chosen."""
    future: Any
    keys: Array
    """[m], of the gradient steps"""


class Driver:
    """Workers of a run, and the learner that they serve.

    Each actor has one call in flight, and a finished block waits until the learner takes it. The
    learner takes none while it owes more than two groups of gradient steps: no queue grows, and
    the ratio of gradient steps to rows is that of the configuration.
    """

    def __init__(
        self, config: Config, cluster: RayCluster, learner: GroupLearner, actors: int, shards: int
    ) -> None:
        self._config, self._cluster, self._learner = config, cluster, learner
        self._num_actors, self._num_shards = actors, shards
        rows = config.rollout_length * (config.num_envs // actors)
        self._iterations = max(1, min(_BLOCK_ROWS // rows, config.iterations_per_chunk))
        steps = config.gradient_steps_per_iteration
        self._group = max(1, min(_MOST_IN_GROUP, self._iterations * steps // actors))
        self._next_keys = jax.jit(learner.next_keys, static_argnums=1)
        self._learn = jax.jit(learner.learn)
        self._random = np.random.default_rng(config.seed)
        self._workers: list[Any] = []
        self._dead: set[int] = set()
        """Actors whose last call failed."""
        self.restarts = 0
        """Calls that failed because a worker had died; one death may fail several."""

    def start(self, key: Array, state: TrainState) -> TrainState:
        """Start the workers and act the warm-up."""
        config, cluster = self._config, self._cluster
        for worker in self._workers:
            cluster.stop(worker)
        example = to_numpy(self._learner.example)
        num_envs, data = config.num_envs // self._num_actors, np.asarray(jax.random.key_data(key))
        of_shard = [range(s, self._num_actors, self._num_shards) for s in range(self._num_shards)]
        self._shards = [
            cluster.start(ShardWorker, config, example, num_envs, len(own)) for own in of_shard
        ]
        self._actors = [
            cluster.start(ActorWorker, config, data, self._num_actors, index, self._iterations)
            for index in range(self._num_actors)
        ]
        self._workers = [*self._shards, *self._actors]
        self._masses, self._incarnations = [0.0] * self._num_shards, [0] * self._num_actors
        self._adds: list[deque[Any]] = [deque() for _ in self._shards]
        self._drawing: _Drawing | None = None
        self._published: tuple[int, Any] = (-1, None)
        self._rows, self._steps = (
            counter_int(state.counters.rows),
            counter_int(state.counters.gradient_steps),
        )
        self._env_steps = counter_int(state.counters.env_steps)
        self._calls: dict[Any, tuple[int, Any]] = {}
        totals = ChunkTotals(self._num_actors)
        published = self._publish(state)
        for index in range(self._num_actors):
            self._call("warm_up", index, published)
        while len(totals.seen) < self._num_actors:
            self._take(cluster.wait(list(self._calls), None)[0], state, totals)
        self._settle_adds()
        self._origin = self._rows, self._steps
        self._target_rows, self._target_steps = self._origin
        return self._counted(state)

    def chunk(
        self, state: TrainState, iterations: int
    ) -> tuple[TrainState, tuple[Metrics, Counters]]:
        """Run the learner until the rows and gradient steps of that many iterations are done.

        Blocks and groups are whole: what exceeds the target counts for the next chunk.
        """
        config, totals = self._config, ChunkTotals(self._num_actors)
        self._target_rows += iterations * config.rows_per_iteration
        self._target_steps += iterations * config.gradient_steps_per_iteration
        while True:
            needs_rows = self._rows < self._target_rows
            if not needs_rows and self._steps + self._group > self._target_steps:
                break
            owed, can_draw = self._owed(), any(self._masses) or self._drawing is not None
            learns = owed >= self._group and can_draw
            if owed < 2 * self._group or not can_draw:
                self._collect(state, totals, wait=not learns)
            if learns:
                state = self._learn_group(state, totals)
        state = self._counted(state)
        return state, (totals.metrics(state, self.restarts), state.counters)

    def _owed(self) -> int:
        """Return the gradient steps that the rows so far allow and that have not been made."""
        rows, steps = self._rows - self._origin[0], self._steps - self._origin[1]
        config = self._config
        return rows * config.gradient_steps_per_iteration // config.rows_per_iteration - steps

    def _collect(self, state: TrainState, totals: ChunkTotals, *, wait: bool) -> None:
        started = time.perf_counter()
        ready = self._cluster.wait(list(self._calls), None if wait else 0)
        if wait:
            totals.waited_for_rows += time.perf_counter() - started
        for future in ready:
            self._take(future, state, totals)

    def _take(self, future: Any, state: TrainState, totals: ChunkTotals) -> None:
        """Take a finished block: send its rows to their shard, and let the actor act again."""
        index, rows = self._calls.pop(future)
        try:
            info = self._cluster.result(future)
        except WorkerDied:
            # Calls fail until Ray has started the process again: one death may fail several.
            self.restarts += index not in self._dead
            self._dead.add(index)
            self._incarnations[index] += 1
            time.sleep(0.1)  # until Ray has noticed that the process has ended
            self._call("block", index, self._publish(state))
            return
        self._dead.discard(index)
        shard = index % self._num_shards
        self._adds[shard].append(self._shards[shard].add.remote(index // self._num_shards, rows))
        while len(self._adds[shard]) > _MOST_ADDS:
            self._settle_add(shard)
        totals.add_block(index, info, self._steps)
        self._rows += int(info.metrics.rows)
        self._env_steps += int(info.metrics.env_steps)
        self._call("block", index, self._publish(state))

    def _call(self, method: str, index: int, published: Any) -> None:
        call = getattr(self._actors[index], method).options(num_returns=2)
        rows, info = call.remote(published, self._incarnations[index])
        self._calls[info] = index, rows

    def _publish(self, state: TrainState) -> Any:
        """Return a reference to the parameters, which are sent once for each version of them."""
        if self._published[0] != self._steps or self._steps == 0:
            params, hyper = to_numpy((state.agent.params, state.hyper))
            made = self._cluster.put(Published(params, hyper, self._steps, self._rows))
            self._published = self._steps, made
        return self._published[1]

    def _settle_adds(self) -> None:
        for shard, adds in enumerate(self._adds):
            while adds:
                self._settle_add(shard)

    def _settle_add(self, shard: int) -> None:
        try:
            self._masses[shard] = self._cluster.result(self._adds[shard].popleft())
        except WorkerDied:
            self._lose(shard)

    def _lose(self, shard: int) -> None:
        """Note the death of a shard: its rings are empty until blocks arrive."""
        if self._masses[shard]:
            self.restarts += 1
        self._masses[shard] = 0.0

    def _learn_group(self, state: TrainState, totals: ChunkTotals) -> TrainState:
        """Make the gradient steps of one group, unless its shard cannot draw."""
        state = self._start_drawing(state)
        drawing, self._drawing = self._drawing, None
        assert drawing is not None
        started = time.perf_counter()
        try:
            draws: Draws | None = self._cluster.result(drawing.future)
        except WorkerDied:
            draws = None
        totals.waited_for_draws += time.perf_counter() - started
        if draws is None:
            self._lose(drawing.shard)
            self._settle_adds()
            return state
        self._masses[drawing.shard] = float(draws.mass)
        state = self._start_drawing(state)  # the next, while this one is learned from
        share = np.float32(drawing.share)
        info = draws.info._replace(probabilities=draws.info.probabilities * share)
        state = self._counted(state)
        state, priorities, metrics = self._learn(state, drawing.keys, draws.batches, info)
        indices = draws._replace(batches=(), ages=())
        self._shards[drawing.shard].update.remote(indices, to_numpy(priorities))
        self._steps += self._group
        totals.add_group(metrics, draws.ages)
        return state

    def _start_drawing(self, state: TrainState) -> TrainState:
        total = sum(self._masses)
        if self._drawing is not None or total == 0:
            return state
        shares = np.asarray(self._masses) / total
        shard = int(self._random.choice(self._num_shards, p=shares))
        steps = self._config.gradient_steps_per_iteration
        key, keys = self._next_keys(state.key, -(-self._group // steps))
        keys = keys[: self._group]
        data = np.asarray(jax.random.key_data(keys[:, 0]))
        future = self._shards[shard].sample.remote(data, np.asarray(state.hyper.gamma))
        self._drawing = _Drawing(shard, float(shares[shard]), future, keys[:, 1])
        return state._replace(key=key)

    def _counted(self, state: TrainState) -> TrainState:
        counts = (self._rows, self._env_steps, self._steps)
        return state._replace(counters=Counters(*map(make_counter, counts)))
