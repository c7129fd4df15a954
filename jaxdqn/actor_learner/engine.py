"""Engine of a run on Ray: ``jaxdqn.run.run(config, engine=RayEngine(actors=4))``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax

from jaxdqn.actor_learner.driver import BLOCK_ROWS, Driver
from jaxdqn.actor_learner.engine_options import resources_of, server_options
from jaxdqn.actor_learner.group_learner import no_metrics
from jaxdqn.actor_learner.host_programs import make_host_programs
from jaxdqn.actor_learner.initial_priorities import InitialPriorities, initial_priorities_of
from jaxdqn.actor_learner.ray_address import check_address
from jaxdqn.actor_learner.ray_cluster import RayCluster, Resources, import_ray
from jaxdqn.actor_learner.server_learning import ServerMode
from jaxdqn.actor_learner.streams import ActorCount
from jaxdqn.actor_learner.time_use import TimeUse
from jaxdqn.config.config import Config, replace
from jaxdqn.errors import reject
from jaxdqn.parallel.learners import RunKeys
from jaxdqn.run.compile import Chunk, Programs, compile_programs, finished
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
    "overlap": True,
    "act_on": "device",
}
"""Fields for which the engine supports only one value, with that value."""


class RayEngine:
    """Asynchronous actors and a sharded replay on Ray, in separate processes.

    Without ``server_mode`` the algorithm is Ape-X (Horgan et al. 2018), and the driver process is
    the learner. With ``server_mode`` it is Gorila (Nair et al. 2015), and the driver process is the
    parameter server of ``learners`` learners. The engine starts a Ray cluster on this machine, or
    joins a running cluster. The environments are divided over the actors. Priorities, gradients and
    parameters are sent asynchronously, so two runs with the same seed differ.

    Args:
        actors: number of actors; must divide ``num_envs``. A pair (minimum, maximum) is elastic:
            the run needs the minimum, and has up to the maximum while the cluster has resources for
            them. The maximum must divide ``num_envs``.
        replay_shards: number of shards, at most ``actors``.
        ray_address: HOST:PORT of a running cluster, or ``auto``.
        learners: L, number of learners of a parameter server.
        server_mode: ``sync``: a gradient step applies the mean of the gradients of all learners, of
            ``batch_size / L`` rows each. ``async``: each gradient is of ``batch_size`` rows and is
            applied as it comes.
        max_staleness: with ``async``: maximum age, in gradient steps, of the parameters of a
            gradient; older gradients are dropped.
        staleness_discount: with ``async``: exponent P. The learning rate of a gradient against
            parameters that are s gradient steps old is multiplied by (1 + s)^-P (Zhang et al.
            2016).
        compression: compression of the gradients that learners send, with error feedback:
            ``none``, ``bfloat16``, ``int8`` or ``top_k``.
        top_k_fraction: fraction of the elements that ``top_k`` sends.
        block_rows: rows that an actor sends at a time, rounded down to complete iterations; fewer
            for slow environments.
        parameters_every: number of blocks after which an actor gets the newest parameters.
        initial_priorities: ``actor``: |TD error| computed by the actor (Horgan et al. 2018);
            ``max``: the maximum priority so far (Schaul et al. 2016). By default ``actor``, and
            ``max`` with a distributional loss.
        cpus_per_actor, cpus_per_shard, cpus_per_learner: CPUs that Ray reserves for a worker;
            fractions below 1 are allowed. Learners are those of a parameter server.
        gpus_per_learner: GPUs that Ray reserves for a learner, at most 1; with 0.5 two learners
            share a GPU. Without GPUs a learner runs on the CPU.

    Raises:
        ValueError: naming the argument, its value and the constraint.
    """

    def __init__(
        self,
        actors: int | tuple[int, int] = 1,
        replay_shards: int = 1,
        ray_address: str | None = None,
        *,
        learners: int = 1,
        server_mode: ServerMode | None = None,
        max_staleness: int | None = None,
        staleness_discount: float = 0.0,
        compression: str = "none",
        top_k_fraction: float = 0.01,
        block_rows: int = BLOCK_ROWS,
        parameters_every: int = 1,
        initial_priorities: InitialPriorities | None = None,
        cpus_per_actor: float = 1.0,
        cpus_per_shard: float = 1.0,
        cpus_per_learner: float = 1.0,
        gpus_per_learner: float = 0.0,
    ) -> None:
        if initial_priorities not in (None, "actor", "max"):
            reject("initial_priorities", initial_priorities, "'actor' or 'max'")
        self._initial = initial_priorities
        if block_rows < 1:
            reject("block_rows", block_rows, "at least 1")
        if parameters_every < 1:
            reject("parameters_every", parameters_every, "at least 1")
        self._block_rows, self._parameters_every = block_rows, parameters_every
        self.actors = ActorCount(actors, actors) if isinstance(actors, int) else ActorCount(*actors)
        if not 1 <= self.actors.least <= self.actors.most:
            reject("actors", actors, "at least 1, or a range LEAST..MOST that begins there")
        if not 1 <= replay_shards <= self.actors.least:
            reject("replay_shards", replay_shards, f"from 1 to actors={self.actors.least}")
        self.replay_shards, self.ray_address = replay_shards, ray_address
        self._of_actor = resources_of("cpus_per_actor", cpus_per_actor)
        self._of_shard = resources_of("cpus_per_shard", cpus_per_shard)
        self._of_learner = resources_of("cpus_per_learner", cpus_per_learner, gpus_per_learner)
        if server_mode is None and self._of_learner != Resources():
            name = "gpus_per_learner" if gpus_per_learner else "cpus_per_learner"
            reject(name, gpus_per_learner or cpus_per_learner, "left out without server_mode: the "
                   "learner is the process of the run")  # fmt: skip
        self._server = server_options(
            learners, server_mode, max_staleness, compression, top_k_fraction
        )
        if not 0 <= staleness_discount < 100:
            reject("staleness_discount", staleness_discount, "at least 0 and below 100")
        if staleness_discount and server_mode != "async":
            reject("staleness_discount", staleness_discount, "left out without server_mode='async'")
        self._staleness_discount = staleness_discount
        self._driver: Driver | None = None
        self._times = TimeUse()

    def configure(self, config: Config, parts: dict[str, Any]) -> Config:
        """Check the configuration, and return it as the engine runs it.

        Raises:
            ValueError: if the engine does not support a field or a custom part.
        """
        self._times = TimeUse()
        import_ray()
        check_address(self.ray_address)
        for name, value in parts.items():
            if value is not None:
                reject(name, value, "left out with engine='ray'")
        for name, wanted in _REQUIRED.items():
            if getattr(config, name) != wanted:
                reject(name, getattr(config, name), f"{wanted!r} with engine='ray'")
        if config.num_envs % self.actors.most:
            reject("actors", self.actors.most, f"a divisor of num_envs={config.num_envs}")
        if self._server is not None and config.batch_size % self._server.batches:
            reject("learners", self._server.learners, f"a divisor of batch_size={config.batch_size}"
                   " with server_mode='sync'")  # fmt: skip
        initial_priorities_of(config, self._initial)
        # The rows are in other processes, so a resumed run repeats the warm-up.
        return replace(config, replay_in_checkpoint=False)

    def programs(
        self, static: StaticRun, config: Config, keys: RunKeys, check: Callable[[], None]
    ) -> Programs:
        """Start the cluster, and return the programs of a run that use its workers."""
        times = self._times
        with times.spent("start"):
            learners = 0 if self._server is None else self._server.learners
            required = [
                *[self._of_shard] * self.replay_shards,
                *[self._of_actor] * self.actors.least,
                *[self._of_learner] * learners,
            ]
            optional = [self._of_actor] * (self.actors.most - self.actors.least)
            cluster = RayCluster(required, self.ray_address, optional, check)
        driver = Driver(
            config,
            cluster,
            self.actors,
            self.replay_shards,
            times,
            self._server,
            self._staleness_discount,
            self._block_rows,
            initial_priorities_of(config, self._initial),
            self._of_actor,
            self._parameters_every,
        )
        self._driver = driver

        def init(key: Array, hyper: Hyper | None = None) -> TrainState:
            return without_replay(driver.init(key, hyper))

        shape = without_replay(static.state_shape)
        try:
            with times.spent("compile"):
                if isinstance(static.trainer, VectorTrainer):
                    compiled = make_host_programs(config, static.trainer, init, shape)
                else:
                    # The workers execute a chunk; the host loop needs only its shapes.
                    trainer = static.trainer._replace(
                        init=init, chunk=lambda iterations: lambda state: (state, no_metrics())
                    )
                    compiled = compile_programs(config, trainer, keys, shape, check)
        except BaseException:
            cluster.close()
            raise

        def start(key: Array, hyper: Hyper) -> tuple[TrainState, Counters]:
            state = driver.start(key, compiled.init(key, hyper)[0])
            return state, state.counters

        def refill(state: TrainState) -> tuple[TrainState, Counters]:
            key, key_workers = jax.random.split(state.key)
            state = driver.start(key_workers, state._replace(key=key, replay=()))
            return state, state.counters

        def part_of_chunk(iterations: int) -> Future[Chunk]:
            return finished(partial(driver.chunk, iterations=iterations))

        def close() -> None:
            cluster.close()
            compiled.close()

        return compiled._replace(
            init=start,
            chunk=partial(driver.chunk, iterations=config.iterations_per_chunk),
            refill=refill,
            part_of_chunk=part_of_chunk,
            least_first_part=driver.block_iterations,
            iterations_done=driver.iterations_done,
            runs_ahead=False,  # a chunk returns only after its workers have finished
            evaluate=self._timed("evaluation", compiled.evaluate),
            evaluate_one=self._timed("evaluation", compiled.evaluate_one),
            evaluate_at_epsilon=self._timed("evaluation", compiled.evaluate_at_epsilon),
            snapshot=self._timed("checkpoint", compiled.snapshot),
            close=close,
        )

    def _timed(self, use: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function to record its time, until its results are ready, for a use."""

        def timed(*arguments: Any) -> Any:
            with self._times.spent(use):
                return jax.block_until_ready(function(*arguments))

        return timed

    def summary(self) -> Record:
        """Return the fields of the summary that describe the engine."""
        least, most = self.actors
        actors = _count(least, "actor") if least == most else f"{least} to {most} actors"
        parts = [actors, _count(self.replay_shards, "shard")]
        learners = 1 if self._server is None else self._server.learners
        parts.append(_count(learners, "learner"))
        if self._server is not None:
            parts.append(f"parameter server ({self._server.mode})")
        driver = self._driver
        restarts = 0 if driver is None else driver.streams.restarts
        dropped = 0 if driver is None else driver.learning.gradients_dropped
        return {
            "mapping": f"ray, {', '.join(parts)}",
            "limited_by": "actors" if driver is None else driver.limits.name,
            "worker_restarts": restarts,
            "ray_rows": {} if driver is None else driver.streams.rows_of_process,
            "gradient_steps_owed": 0 if driver is None else driver.owed,
            **({} if self._server is None else {"gradients_dropped": dropped}),
            "goodput": self._goodput(0.0 if driver is None else driver.learning.learner_seconds),
        }

    def record(self) -> Record:
        """Return the name of the engine and the arguments that differ from their defaults."""
        least, most = self.actors
        actors = least if least == most else [least, most]
        arguments: Record = {"actors": actors, "replay_shards": self.replay_shards}
        resources = {
            "cpus_per_actor": (self._of_actor.cpus, 1.0),
            "cpus_per_shard": (self._of_shard.cpus, 1.0),
            "cpus_per_learner": (self._of_learner.cpus, 1.0),
            "gpus_per_learner": (self._of_learner.gpus, 0.0),
        }
        arguments |= {name: here for name, (here, default) in resources.items() if here != default}
        if self.ray_address is not None:
            arguments["ray_address"] = self.ray_address
        if self._block_rows != BLOCK_ROWS:
            arguments["block_rows"] = self._block_rows
        if self._parameters_every != 1:
            arguments["parameters_every"] = self._parameters_every
        if self._initial is not None:
            arguments["initial_priorities"] = self._initial
        server = self._server
        if server is not None:
            arguments |= {"learners": server.learners, "server_mode": server.mode}
            if server.max_staleness is not None:
                arguments["max_staleness"] = server.max_staleness
            if self._staleness_discount:
                arguments["staleness_discount"] = self._staleness_discount
            if server.compression.kind != "none":
                arguments["compression"] = server.compression.kind
                arguments["top_k_fraction"] = server.compression.top_k_fraction
        return {"engine": "ray", **arguments}

    def _goodput(self, productive: float) -> Record:
        """Return the share of productive time, and the seconds of every use."""
        wall, seconds = self._times.wall, self._times.seconds()
        return {
            "share": productive / wall,
            "learner_seconds": productive,
            "wall_seconds": wall,
            "seconds": {**seconds, "other": wall - sum(seconds.values())},
        }


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number > 1 else ''}"
