"""Workers: an actor, a shard or a learner in its process. They exchange NumPy arrays."""

from __future__ import annotations

import time
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
from jaxdqn.config.config import Config
from jaxdqn.errors import reject
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
    """Duration of acting."""


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
        self._start, self._warm_up = jax.jit(functions.start), jax.jit(functions.warm_up)
        self._block = jax.jit(functions.block, donate_argnums=0)
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
        started, count = time.perf_counter(), make_counter(before)
        stream, played = program(self._stream, published.params, published.hyper, count)
        self._stream = stream
        rows, metrics = to_numpy(played)
        seconds = time.perf_counter() - started
        return rows, BlockInfo(metrics, published.gradient_steps, seconds)


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
        self._add = jax.jit(functions.add, donate_argnums=0)
        self._sample = jax.jit(functions.sample)
        self._update = jax.jit(functions.update, donate_argnums=0)
        self._mass = jax.jit(functions.mass)

    def add(self, ring: int, number: int, rows: Row) -> float:
        """Store rows [I, K, E] of a stream; return the sum of the priorities of the shard.

        Raises:
            ValueError: if ``number``, the number of the block, is not above that of the last block
                of the ring: a block must not be stored twice.
        """
        if number <= self._newest.get(ring, -1):
            reject("number", number, f"above {self._newest[ring]}, that of the last block of the "
                   "ring")  # fmt: skip
        self._newest[ring] = number
        rings = list(self._rings)
        rings[ring] = self._add(rings[ring], rows)
        self._rings = tuple(rings)
        return float(self._mass(self._rings))

    def sample(self, key_data: np.ndarray, gamma: np.ndarray) -> Draws | None:
        """Draw a batch for each key, [m]; None while no row can be drawn."""
        if float(self._mass(self._rings)) == 0.0:
            return None
        keys = jax.random.wrap_key_data(jnp.asarray(key_data))
        return to_numpy(self._sample(keys, self._rings, gamma))

    def update(self, drawn: Draws, priorities: np.ndarray) -> None:
        """Set the priorities [m, B] of the rows of batches; only indices of ``drawn`` are read."""
        self._rings = self._update(self._rings, drawn, priorities)

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
    """Duration of the computation."""
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
        self._gradient = jax.jit(functions.gradient)
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
        started = time.perf_counter()
        copy = Copy(published.params, target, published.hyper, make_counter(rows))
        batch, info, ages = jax.tree.map(
            lambda leaf: leaf[0], (drawn.batches, drawn.info, drawn.ages)
        )
        key_learn = jax.random.wrap_key_data(jnp.asarray(key))
        result = self._gradient(key_learn, copy, batch, info, self._residual)
        priorities, gradient, self._residual = result
        priorities, gradient = to_numpy((priorities[None], gradient))
        seconds = time.perf_counter() - started
        answer = GradientInfo(gradient, published.gradient_steps, seconds, float(ages))
        return priorities, answer


def to_numpy(tree: Any) -> Any:
    """Copy the leaves into NumPy arrays."""
    return jax.tree.map(np.array, jax.device_get(tree))
