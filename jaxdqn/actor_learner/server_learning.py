"""Parameter server: the driver process applies the gradients of its learners."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.gradient_server import Compression, ServerFunctions
from jaxdqn.actor_learner.ray_cluster import ObjectLost, RayCluster, WorkerDied
from jaxdqn.actor_learner.streams import Streams
from jaxdqn.actor_learner.time_use import Compiled, TimeUse
from jaxdqn.actor_learner.workers import GradientInfo, LearnerWorker, to_numpy
from jaxdqn.config.config import Config
from jaxdqn.types import TrainState

ServerMode = Literal["sync", "async"]


class ServerOptions(NamedTuple):
    """Options of a parameter server."""

    learners: int
    """L"""
    mode: ServerMode
    """sync: each learner computes the gradient of its part of a batch, and the server applies the
    mean. async: each learner computes the gradient of a whole batch, and the server applies the
    gradients as they arrive."""
    compression: Compression
    max_staleness: int | None
    """Maximum age of a gradient in gradient steps; older gradients are dropped. None keeps all."""

    @property
    def batches(self) -> int:
        """Number of parts into which the batch of a gradient step is divided."""
        return self.learners if self.mode == "sync" else 1


class _Drawn(NamedTuple):
    """Batch that a shard draws for a learner."""

    shard: int
    draws: Any
    indices: Any
    mass: Any
    key: np.ndarray
    """Key data of the gradient step."""


class _InFlight(NamedTuple):
    learner: int
    drawn: _Drawn
    priorities: Any


class ServerLearning:
    """Calls to the learners, each with one gradient in flight and one batch drawn ahead.

    Args:
      config: configuration of the run.
      cluster: Ray cluster of the workers.
      streams: rows of the actors.
      server: functions of the server.
      options: options of the parameter server.
      times: clock of the driver process.
    """

    def __init__(
        self,
        config: Config,
        cluster: RayCluster,
        streams: Streams,
        server: ServerFunctions,
        options: ServerOptions,
        times: TimeUse,
    ) -> None:
        self._config, self._cluster, self._streams = config, cluster, streams
        self._options, self._times, self.unit = options, times, 1
        self._next_keys = Compiled(lambda key: server.next_keys(key, 1), times)
        self._apply = Compiled(server.apply, times)
        self._part_keys = Compiled(partial(_part_keys, batches=options.batches), times)
        self._random = np.random.default_rng(config.seed)
        self._learners: list[Any] = []
        self.learner_seconds = 0.0
        """Seconds of computing gradients, mean over the learners."""
        self.gradients_dropped = 0

    def start(self) -> None:
        """Start the learners."""
        for learner in self._learners:
            self._cluster.stop(learner)
        options = self._options
        self._learners = [
            self._cluster.start(LearnerWorker, self._config, options.batches, options.compression)
            for _ in range(options.learners)
        ]
        self._drawn: list[_Drawn | None] = [None] * options.learners
        self._keys: deque[np.ndarray] = deque()
        """Key data [2, ...] of the next gradients: for drawing the batch, and for the loss."""
        self._in_flight: dict[Any, _InFlight] = {}
        self._arrived: dict[int, GradientInfo] = {}
        """Gradients by learner of a step that waits for the gradients of other learners."""
        self._target: tuple[int, Any] = (-1, None)

    @property
    def futures(self) -> tuple[Any, ...]:
        """Futures of the gradients in flight."""
        return tuple(self._in_flight)

    def work(self, state: TrainState, totals: ChunkTotals, owed: int) -> tuple[TrainState, bool]:
        """Start gradients on idle learners, up to the gradient steps that are due.

        Returns:
          The state, and False, because the call does not wait.
        """
        options = self._options
        busy = {call.learner for call in self._in_flight.values()} | set(self._arrived)
        idle = [index for index in range(options.learners) if index not in busy]
        if options.mode == "sync":
            # All gradients of a step are computed with the same parameters. A learner that died
            # computes its gradient again.
            allowed = len(idle) if owed >= 1 else 0
        else:
            allowed = max(0, owed - len(self._in_flight))
        for index in idle[:allowed]:
            state = self._send(index, state)
        for index in range(options.learners):
            state = self._draw(index, state)
        return state, False

    def receive(self, future: Any, state: TrainState, totals: ChunkTotals) -> TrainState:
        """Take a gradient: apply it, or keep it until all learners have sent theirs."""
        call = self._in_flight.pop(future)
        answer = self._answer(future, call)
        if answer is None:
            return state
        streams = self._streams
        streams.shards[call.drawn.shard].update.remote(call.drawn.indices, call.priorities)
        self.learner_seconds += answer.seconds / self._options.learners
        staleness = streams.steps - answer.gradient_steps
        totals.add_gradient(call.learner, staleness, answer)
        if self._options.mode == "sync":
            self._arrived[call.learner] = answer
            if len(self._arrived) < self._options.learners:
                return state
            answers = [self._arrived[index] for index in sorted(self._arrived)]
            self._arrived = {}
        else:
            answers = [answer]
            most = self._options.max_staleness
            if most is not None and staleness > most:
                totals.gradients_dropped += 1
                self.gradients_dropped += 1
                return state
        gradients = tuple(each.gradient for each in answers)
        with self._times.spent("learn"):
            state, metrics = self._apply(state, gradients, np.float32(staleness))
            jax.block_until_ready(state.agent.params)
        streams.steps += 1
        totals.add_group(metrics, [each.age for each in answers])
        return state

    def _answer(self, future: Any, call: _InFlight) -> GradientInfo | None:
        """Return the gradient of a call; None if its learner or its shard has failed."""
        streams, shard = self._streams, call.drawn.shard
        try:
            mass = self._cluster.result(call.drawn.mass)
        except (WorkerDied, ObjectLost):
            streams.lose(shard)
            return None
        streams.deaths.note_life(f"shard {shard}")
        streams.masses[shard] = mass
        try:
            answer = self._cluster.result(future)
        except WorkerDied:
            streams.note_death(f"learner {call.learner}")
            return None
        except ObjectLost:  # the batch was lost with the node of its shard
            return None
        streams.deaths.note_life(f"learner {call.learner}")
        return answer

    def _send(self, index: int, state: TrainState) -> TrainState:
        """Start a gradient on a learner, if a shard can draw its batch."""
        state = self._draw(index, state)
        drawn, self._drawn[index] = self._drawn[index], None
        if drawn is None:
            return state
        published, target = self._streams.publish(state), self._publish_target(state)
        priorities, future = (
            self._learners[index]
            .gradient.options(num_returns=2)
            .remote(published, target, self._streams.rows, drawn.draws, drawn.key)
        )
        self._in_flight[future] = _InFlight(index, drawn, priorities)
        return state

    def _draw(self, index: int, state: TrainState) -> TrainState:
        """Start drawing the next batch of a learner, unless a shard has already started."""
        masses = np.asarray(self._streams.masses)
        if self._drawn[index] is not None or masses.sum() == 0:
            return state
        shares = masses / masses.sum()
        shard = int(self._random.choice(len(masses), p=shares))
        state, (key_draw, key_learn) = self._next_key(state)
        worker, gamma = self._streams.shards[shard], np.asarray(state.hyper.gamma)
        draws, indices, mass = worker.draw.options(num_returns=3).remote(
            key_draw, gamma, float(shares[shard])
        )
        self._drawn[index] = _Drawn(shard, draws, indices, mass, key_learn)
        return state

    def _next_key(self, state: TrainState) -> tuple[TrainState, np.ndarray]:
        if not self._keys:
            key, keys = self._next_keys(state.key)
            state = state._replace(key=key)
            parts = self._part_keys(keys)
            self._keys.extend(np.asarray(jax.random.key_data(parts)).reshape(-1, 2, 2))
        return state, self._keys.popleft()

    def _publish_target(self, state: TrainState) -> Any:
        """Return a reference to the target network; each version of it is sent once."""
        steps = self._streams.steps
        version = steps
        if self._config.target_tau is None:
            version = steps - int(state.agent.since_target)
        if self._target[0] != version:
            with self._times.spent("parameters"):
                target = self._cluster.put(to_numpy(state.agent.target_params))
            self._target = version, target
        return self._target[1]


def _part_keys(keys: Any, batches: int) -> Any:
    """Derive the keys [M, batches, 2] of the parts of batches from keys [M, 2] of the batches.

    With one part the keys are unchanged.
    """
    if batches == 1:
        return keys[:, None]
    parts = jnp.arange(batches, dtype=jnp.uint32)
    of_part = jax.vmap(jax.random.fold_in, (None, 0))
    return jnp.swapaxes(jax.vmap(jax.vmap(of_part, (0, None)), (0, None))(keys, parts), 1, 2)
