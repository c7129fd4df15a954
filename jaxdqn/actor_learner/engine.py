"""The engine of a run on Ray: ``jaxdqn.run.run(config, engine=RayEngine(actors=4))``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax

from jaxdqn.actor_learner.driver import Driver
from jaxdqn.actor_learner.group_learner import make_group_learner, no_metrics
from jaxdqn.actor_learner.ray_cluster import RayCluster, check_address, import_ray
from jaxdqn.config.config import Config, replace
from jaxdqn.config.host_envs import HOST_SUITES
from jaxdqn.errors import reject
from jaxdqn.parallel.learners import RunKeys
from jaxdqn.run.compile import Chunk, Programs, compile_programs
from jaxdqn.run.program_cache import StaticRun
from jaxdqn.storage.jsonl import Record
from jaxdqn.storage.state import without_replay
from jaxdqn.training.vector_trainer import VectorTrainer
from jaxdqn.types import Array, Counters, Hyper, TrainState

_REQUIRED = {
    "algorithm": "dqn",
    "replay": "prioritized",
    "recurrent": "none",
    "devices": 1,
    "model_devices": 1,
    "learners": 1,
    "average_every": None,
    "normalize_observations": False,
    "replay_from": None,
    "diagnostics": False,
    "init_from": None,
}
"""Values of the fields that the engine supports with one value only."""


class RayEngine:
    """Ape-X on Ray: actors and shards of the replay in processes of their own.

    The process that runs the configuration is the learner. It starts a Ray cluster on this machine,
    or joins a running one. The environments are divided over the actors. Priorities and parameters
    travel asynchronously, so two runs of the same seed differ.

    Args:
        actors: number of actors; must divide ``num_envs``.
        replay_shards: number of shards, at most ``actors``.
        ray_address: HOST:PORT of a running cluster, or ``auto``.

    Raises:
        ValueError: naming the argument, its value and the constraint.
    """

    def __init__(
        self, actors: int = 1, replay_shards: int = 1, ray_address: str | None = None
    ) -> None:
        if actors < 1:
            reject("actors", actors, "at least 1")
        if not 1 <= replay_shards <= actors:
            reject("replay_shards", replay_shards, f"from 1 to actors={actors}")
        self.actors, self.replay_shards, self.ray_address = actors, replay_shards, ray_address
        self._driver: Driver | None = None

    def configure(self, config: Config, parts: dict[str, Any]) -> Config:
        """Return the configuration as the engine runs it, after a check.

        Raises:
            ValueError: if the engine does not support a field or a custom part.
        """
        import_ray()
        check_address(self.ray_address)
        for name, value in parts.items():
            if value is not None:
                reject(name, value, "left out with engine='ray'")
        for name, wanted in _REQUIRED.items():
            if getattr(config, name) != wanted:
                reject(name, getattr(config, name), f"{wanted!r} with engine='ray'")
        if config.env.partition(":")[0] in HOST_SUITES:
            reject("env", config.env, "an environment on the device with engine='ray'")
        if config.num_envs % self.actors:
            reject("actors", self.actors, f"a divisor of num_envs={config.num_envs}")
        # The rows are in other processes: a run that is resumed repeats the warm-up.
        return replace(config, replay_in_checkpoint=False)

    def programs(
        self, static: StaticRun, config: Config, keys: RunKeys, check: Callable[[], None]
    ) -> Programs:
        """Start the cluster, and return the programs of a run, whose chunks the workers serve."""
        assert not isinstance(static.trainer, VectorTrainer)
        learner = make_group_learner(config)

        def init(key: Array, hyper: Hyper | None = None) -> TrainState:
            return without_replay(learner.init(key, hyper))

        # The workers do the work of a chunk; the host loop needs only its shapes.
        trainer = static.trainer._replace(
            init=init, chunk=lambda iterations: lambda state: (state, no_metrics())
        )
        shape = without_replay(static.state_shape)
        compiled = compile_programs(config, trainer, keys, shape, check)
        cluster = RayCluster(self.actors + self.replay_shards, self.ray_address)
        driver = Driver(config, cluster, learner, self.actors, self.replay_shards)
        self._driver = driver

        def start(key: Array, hyper: Hyper) -> tuple[TrainState, Counters]:
            state = driver.start(key, compiled.init(key, hyper)[0])
            return state, state.counters

        def refill(state: TrainState) -> tuple[TrainState, Counters]:
            key, key_workers = jax.random.split(state.key)
            state = driver.start(key_workers, state._replace(key=key, replay=()))
            return state, state.counters

        def part_of_chunk(iterations: int) -> Future[Chunk]:
            part: Future[Chunk] = Future()
            part.set_result(partial(driver.chunk, iterations=iterations))
            return part

        return compiled._replace(
            init=start,
            chunk=partial(driver.chunk, iterations=config.iterations_per_chunk),
            refill=refill,
            part_of_chunk=part_of_chunk,
            close=cluster.close,
        )

    def summary(self) -> Record:
        """Return the fields of the summary that describe the engine."""
        shards = f"{self.replay_shards} shard{'s' if self.replay_shards > 1 else ''}"
        actors = f"{self.actors} actor{'s' if self.actors > 1 else ''}"
        restarts = 0 if self._driver is None else self._driver.restarts
        return {"mapping": f"ray, {actors}, {shards}, 1 learner", "worker_restarts": restarts}
