"""Workers: an actor, a shard or a learner in its process. They exchange NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.actor_learner.actor import Stream, make_actor
from jaxdqn.actor_learner.gradient_server import (
    Compression,
    Copy,
    Gradient,
    make_gradient_learner,
)
from jaxdqn.actor_learner.initial_priorities import InitialPriorities
from jaxdqn.actor_learner.shard import Draws, Rings, make_shard
from jaxdqn.actor_learner.time_use import Compiled, TimeUse
from jaxdqn.config.config import Config
from jaxdqn.types import Hyper, Metrics, Params, Row, make_counter


class Published(NamedTuple):
    """Parameters of the learner, as sent to actors."""

    params: Params
    hyper: Hyper
    gradient_steps: int
    """Number of gradient steps before these parameters."""


class BlockInfo(NamedTuple):
    """Description of a block of rows; the rows are sent separately."""

    metrics: Metrics
    gradient_steps: int
    """``Published.gradient_steps`` of the parameters that the actor used."""
    seconds: float
    """Duration of acting, without compilation."""


class ActorWorker:
    """One actor.

    Args:
        config: configuration of the run.
        key_data: key data of the run.
        actors, index, iterations, initial: as for ``make_actor``.
    """

    def __init__(
        self,
        config: Config,
        key_data: np.ndarray,
        actors: int,
        index: int,
        iterations: int,
        initial: InitialPriorities = "max",
    ) -> None:
        functions = make_actor(
            config, actors=actors, index=index, iterations=iterations, initial=initial
        )
        self._key = jax.random.wrap_key_data(jnp.asarray(key_data))
        self._incarnation = 0
        self._start, self._times = jax.jit(functions.start), TimeUse()
        self._warm_up = Compiled(functions.warm_up, self._times)
        self._block = Compiled(functions.block, self._times, donate_argnums=0)
        self._stream: Stream = self._start(self._key)

    def warm_up(self, published: Published, rows: int, incarnation: int) -> tuple[Row, BlockInfo]:
        """Act for the iterations of the warm-up."""
        self._follow(incarnation)
        return self._play(published, rows, lambda *arguments: self._warm_up(self._key, *arguments))

    def block(self, published: Published, rows: int, incarnation: int) -> tuple[Row, BlockInfo]:
        """Act for the iterations of a block.

        ``rows`` is the number of counted rows of all actors. ``incarnation`` is the number of
        deaths of this worker; when it changes, a new stream starts, with other random numbers.
        """
        self._follow(incarnation)
        return self._play(published, rows, self._block)

    def _follow(self, incarnation: int) -> None:
        if incarnation != self._incarnation:
            self._incarnation = incarnation
            self._stream = self._start(jax.random.fold_in(self._key, incarnation))

    def _play(self, published: Published, before: int, program: Any) -> tuple[Row, BlockInfo]:
        with self._times.spent("act") as spent:
            count = make_counter(before)
            stream, played = program(self._stream, published.params, published.hyper, count)
            self._stream = stream
            rows, metrics = to_numpy(played)
        return rows, BlockInfo(metrics, published.gradient_steps, spent.seconds)


class ShardReport(NamedTuple):
    """Answer of a shard to a block."""

    mass: float
    """Sum of the priorities of the shard."""
    stored: int
    """Number of rows of the block that were stored."""
    duplicated: int
    """Number of rows of the block if the shard already had it; they are not stored again."""
    seconds: float
    """Duration of all calls since the last report."""


class ShardWorker:
    """One shard of the replay.

    Args:
        config: configuration of the run.
        example: row of zeros.
        num_envs, rings, initial: as for ``make_shard``.
    """

    def __init__(
        self,
        config: Config,
        example: Row,
        num_envs: int,
        rings: int,
        initial: InitialPriorities = "max",
    ) -> None:
        functions = make_shard(config, num_envs=num_envs, rings=rings, initial=initial)
        self._rings: Rings = jax.jit(functions.init)(example)
        self._newest: dict[int, int] = {}
        """Number of the newest block of each ring."""
        self._times, self._seconds = TimeUse(), 0.0
        """Clock, and the duration of the calls since the last report without compilation."""
        self._add = Compiled(functions.add, self._times, donate_argnums=0)
        self._sample = Compiled(functions.sample, self._times)
        self._update = Compiled(functions.update, self._times, donate_argnums=0)
        self._mass = Compiled(functions.mass, self._times)

    def add(self, ring: int, number: int, rows: Row) -> ShardReport:
        """Store rows [I, K, E] of a stream.

        Blocks of a ring are numbered from 0. A block whose number is not above the newest is not
        stored. After a missing number the stream has a gap, and the block starts new episodes.
        """
        newest = self._newest.get(ring, number - 1)
        stored = number > newest
        with self._busy():
            if stored:
                self._newest[ring] = number
                rings = list(self._rings)
                rings[ring] = self._add(
                    rings[ring], with_first(rows) if number > newest + 1 else rows
                )
                self._rings = tuple(rings)
            mass = float(self._mass(self._rings))
        seconds, self._seconds = self._seconds, 0.0
        count = rows.first.size
        return ShardReport(mass, stored * count, (not stored) * count, seconds)

    def sample(self, key_data: np.ndarray, gamma: np.ndarray) -> Draws | None:
        """Draw a batch for each key, [m]; None while no row can be drawn."""
        with self._busy():
            if float(self._mass(self._rings)) == 0.0:
                return None
            keys = jax.random.wrap_key_data(jnp.asarray(key_data))
            return to_numpy(self._sample(keys, self._rings, gamma))

    def update(self, drawn: Draws, priorities: np.ndarray) -> None:
        """Set the priorities [m, B] of the rows of batches; only indices of ``drawn`` are read."""
        with self._busy():
            self._rings = jax.block_until_ready(self._update(self._rings, drawn, priorities))

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Count the time of a ``with`` block."""
        with self._times.spent("work") as spent:
            yield
        self._seconds += spent.seconds

    def draw(
        self, key_data: np.ndarray, gamma: np.ndarray, share: float
    ) -> tuple[Draws | None, Draws | None, float]:
        """Draw one batch for a learner; ``share`` is the probability of this shard.

        Returns:
            The draws, the draws without their batches, and the sum of the priorities. While no row
            can be drawn: None, None and 0.
        """
        drawn = self.sample(key_data[None], gamma)
        if drawn is None:
            return None, None, 0.0
        probabilities = drawn.info.probabilities * np.float32(share)
        drawn = drawn._replace(info=drawn.info._replace(probabilities=probabilities))
        return drawn, drawn._replace(batches=(), ages=()), float(drawn.mass)


class GradientInfo(NamedTuple):
    """Answer of a learner; its priorities are sent separately."""

    gradient: Gradient
    gradient_steps: int
    """``Published.gradient_steps`` of the parameters with which it was computed."""
    seconds: float
    """Duration of the computation, without compilation."""
    age: float
    """Mean number of vector steps stored in the ring since each row of the batch."""


class LearnerWorker:
    """One learner of a parameter server.

    Args:
        config: configuration of the run.
        batches, compression: as for ``make_gradient_learner``.
    """

    def __init__(self, config: Config, batches: int, compression: Compression) -> None:
        functions = make_gradient_learner(config, batches=batches, compression=compression)
        self._times = TimeUse()
        self._gradient = Compiled(functions.gradient, self._times)
        self._residual = functions.init()

    def gradient(
        self, published: Published, target: Params, rows: int, drawn: Draws | None, key: np.ndarray
    ) -> tuple[np.ndarray | None, GradientInfo | None]:
        """Compute the gradient of a batch, and the new priorities of its rows.

        Args:
            published: parameters of the server.
            target: parameters of the target network.
            rows: as for ``ActorWorker.block``.
            drawn: one batch with leaves [1, B, ...]; None if the shard could not draw.
            key: key data.
        """
        if drawn is None:
            return None, None
        with self._times.spent("learn") as spent:
            copy = Copy(published.params, target, published.hyper, make_counter(rows))
            batch, info, ages = jax.tree.map(
                lambda leaf: leaf[0], (drawn.batches, drawn.info, drawn.ages)
            )
            key_learn = jax.random.wrap_key_data(jnp.asarray(key))
            result = self._gradient(key_learn, copy, batch, info, self._residual)
            priorities, gradient, self._residual = result
            priorities, gradient = to_numpy((priorities[None], gradient))
        answer = GradientInfo(gradient, published.gradient_steps, spent.seconds, float(ages))
        return priorities, answer


def with_first(rows: Row) -> Row:
    """Mark the first vector step of rows [I, K, E] as the start of episodes."""
    first: Any = np.array(rows.first)
    first[0, 0] = True
    return rows._replace(first=first)


def to_numpy(tree: Any) -> Any:
    """Copy the leaves into NumPy arrays."""
    return jax.tree.map(np.array, jax.device_get(tree))
