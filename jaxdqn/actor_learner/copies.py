"""Copies of the parameters that actors and learners have."""

from __future__ import annotations

from typing import Any

from jaxdqn.actor_learner.ray_cluster import RayCluster
from jaxdqn.actor_learner.time_use import TimeUse
from jaxdqn.actor_learner.workers import Published, to_numpy
from jaxdqn.types import TrainState


class Copies:
    """References to parameters in the object store; each version is stored once.

    Args:
      cluster: Ray cluster of the workers.
      times: clock of the driver process.
      actors: number of actors.
      every: number of blocks after which an actor gets the newest parameters.
    """

    def __init__(self, cluster: RayCluster, times: TimeUse, actors: int, every: int) -> None:
        self._cluster, self._times, self._every = cluster, times, every
        self._newest: tuple[int, Any] = (-1, None)
        self._of_actor: list[tuple[int, Any]] = [(0, None)] * actors
        """Number of blocks that each actor has started with its copy, and this copy."""

    def newest(self, state: TrainState, steps: int) -> Any:
        """Return a reference to the parameters after ``steps`` gradient steps."""
        if self._newest[0] != steps or steps == 0:
            with self._times.spent("parameters"):
                params, hyper = to_numpy((state.agent.params, state.hyper))
                made = self._cluster.put(Published(params, hyper, steps))
            self._newest = steps, made
        return self._newest[1]

    def of_actor(self, index: int, state: TrainState, steps: int) -> Any:
        """Return a reference to the parameters of the next block of an actor."""
        blocks, copy = self._of_actor[index]
        if blocks % self._every == 0:
            blocks, copy = 0, self.newest(state, steps)
        self._of_actor[index] = blocks + 1, copy
        return copy

    def forget(self, index: int) -> None:
        """Forget the copy of an actor that died."""
        self._of_actor[index] = 0, None
