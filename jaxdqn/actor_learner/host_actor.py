"""An actor whose environments are on the host: they step in Python, and the agent is compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn import envs
from jaxdqn.actor_learner.actor import acting_config, keys_of_block, learner_of_actor
from jaxdqn.actor_learner.initial_priorities import InitialPriorities, with_estimates
from jaxdqn.actor_learner.workers import BlockInfo, Published, to_numpy
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.envs.vector.checked import CheckedEnvironments
from jaxdqn.training.keys import seed_of, start_keys
from jaxdqn.training.learner import Learner
from jaxdqn.training.metrics import over_envs, reduce_metrics
from jaxdqn.training.vector_functions import Acting, VectorFunctions
from jaxdqn.types import (
    ActorState,
    Array,
    Counter,
    Hyper,
    Metrics,
    PyTree,
    Row,
    TimeStep,
    counter_float,
    make_counter,
)


class HostActorFunctions(NamedTuple):
    """Pure functions of one actor, with E environments of its own on the host."""

    start: Callable[[TimeStep], ActorState]
    """``start(timestep) -> actor``: the state of acting after a reset"""
    warm_up_keys: Callable[[Array], Array]
    """``warm_up_keys(key) -> keys[W K]`` of the agent in the warm-up; ``key`` is that of the
    run."""
    keys: Callable[[Array], tuple[Array, Array]]
    """``keys(key) -> (key, keys[I K])`` of the agent in a block"""
    begin: Callable[..., tuple[Acting, PyTree]]
    """``begin(actor, keys, params, hyper, rows) -> (acting, extras)``: the first actions of a
    block; ``rows`` counts those of all actors before it."""
    advance: Callable[..., tuple[Acting, PyTree]]
    """``advance(acting, timestep, keys, params, hyper) -> (acting, extras)``: the next actions"""
    observe: Callable[
        [ActorState, TimeStep, Array, PyTree, Hyper, Counter], tuple[ActorState, Row, Metrics]
    ]
    """``observe(actor, timesteps[n K, E], actions[n K, E], extras[n K, E], hyper, rows) -> (actor,
    rows[n, K, E], metrics)``: the rows of n iterations"""
    environment: HostEnvironment
    num_envs: int
    """E"""


def make_host_actor(
    config: Config,
    *,
    actors: int,
    index: int,
    iterations: int,
    initial: InitialPriorities = "max",
) -> HostActorFunctions:
    """Make the functions of one actor; the arguments are those of ``make_actor``."""
    environment = envs.configured_host_environment(config)
    assert environment is not None
    config = acting_config(config, actors)
    collectives = identity_collectives._replace(size=actors, index=lambda: jnp.int32(index))
    _, learner = learner_of_actor(config, environment.spec, collectives, initial)
    functions = VectorFunctions(config, environment, learner, collectives, extras=False)

    def warm_up_keys(key: Array) -> Array:
        shape = (config.warmup_iterations, *learner.key_shapes.act)
        return jax.random.split(start_keys(key, index).warm_up, shape)[:, :, 0].reshape(-1)

    def keys(key: Array) -> tuple[Array, Array]:
        key, act = keys_of_block(learner, key, iterations)
        return key, act[:, :, 0].reshape(-1)

    return HostActorFunctions(
        start=functions.start,
        warm_up_keys=warm_up_keys,
        keys=keys,
        begin=functions.begin,
        advance=functions.advance,
        observe=_make_observe(config, learner, initial),
        environment=environment,
        num_envs=config.envs_per_device,
    )


def _make_observe(
    config: Config, learner: Learner, initial: InitialPriorities
) -> Callable[..., Any]:
    length = config.rollout_length

    def observe(
        actor: ActorState,
        timesteps: TimeStep,
        actions: Array,
        extras: PyTree,
        hyper: Hyper,
        rows: Counter,
    ) -> tuple[ActorState, Row, Metrics]:
        before = counter_float(rows)

        def step(actor: ActorState, inputs: Any) -> tuple[ActorState, tuple[Row, Metrics]]:
            number, timestep, chosen, extra = inputs
            decision = learner.recall(
                hyper, before + number * config.num_envs, actor, chosen, actor.carry, extra
            )
            actor, row, metrics = learner.observe(actor, decision, (), timestep)
            return actor, (row, metrics)

        numbers = jnp.arange(actions.shape[0], dtype=jnp.float32)
        actor, (stored, metrics) = jax.lax.scan(step, actor, (numbers, timesteps, actions, extras))
        stored = jax.tree.map(lambda leaf: leaf.reshape(-1, length, *leaf.shape[1:]), stored)
        if initial == "actor":
            stored = with_estimates(stored)
        return actor, stored, over_envs(reduce_metrics(metrics))

    return observe


class HostActorWorker:
    """One actor with environments on the host. The arguments are those of ``ActorWorker``."""

    def __init__(
        self,
        config: Config,
        key_data: np.ndarray,
        actors: int,
        index: int,
        iterations: int,
        initial: InitialPriorities = "max",
    ) -> None:
        made = make_host_actor(
            config, actors=actors, index=index, iterations=iterations, initial=initial
        )
        self._start_acting, self._observe = jax.jit(made.start), jax.jit(made.observe)
        self._begin, self._advance = jax.jit(made.begin), jax.jit(made.advance)
        self._keys, self._warm_up_keys = jax.jit(made.keys), jax.jit(made.warm_up_keys)
        self._key = jax.random.wrap_key_data(jnp.asarray(key_data))
        self._index, self._incarnation = index, 0
        self._envs = CheckedEnvironments(made.environment, made.num_envs, config.restart_envs)
        self._start(self._key)

    def _start(self, key: Array) -> None:
        """Start an episode in every environment."""
        keys = start_keys(key, self._index)
        self._run_key = keys.run
        self._actor = self._start_acting(self._envs.reset(seed_of(keys.envs)))
        self._position: tuple[Acting, TimeStep] | None = None

    def warm_up(self, published: Published, rows: int, incarnation: int) -> tuple[Row, BlockInfo]:
        """Act the iterations of the warm-up."""
        self._follow(incarnation)
        return self._play(published, rows, self._warm_up_keys(self._key))

    def block(self, published: Published, rows: int, incarnation: int) -> tuple[Row, BlockInfo]:
        """Act the iterations of a block, as ``ActorWorker.block``."""
        self._follow(incarnation)
        self._run_key, keys = self._keys(self._run_key)
        return self._play(published, rows, keys)

    def _follow(self, incarnation: int) -> None:
        if incarnation != self._incarnation:
            self._incarnation = incarnation
            self._start(jax.random.fold_in(self._key, incarnation))

    def _play(self, published: Published, before: int, keys: Array) -> tuple[Row, BlockInfo]:
        started, count = time.perf_counter(), make_counter(before)
        params, hyper = jax.device_put((published.params, published.hyper))
        timesteps: list[TimeStep] = []
        chosen: list[np.ndarray] = []
        stored: list[PyTree] = []
        for _ in range(len(keys)):
            if self._position is None:
                acting, extras = self._begin(self._actor, keys, params, hyper, count)
            else:
                last, timestep = self._position
                if not chosen:  # the keys and the count of rows are those of this block
                    last = last._replace(step=jnp.int32(0), rows=count)
                acting, extras = self._advance(last, timestep, keys, params, hyper)
            actions = np.asarray(acting.action)
            timestep = self._envs.step(actions)
            self._position = acting, timestep
            timesteps.append(timestep)
            chosen.append(actions)
            stored.append(jax.tree.map(np.asarray, extras))
        played = jax.tree.map(
            lambda *leaves: np.stack(leaves), *zip(timesteps, chosen, stored, strict=True)
        )
        self._actor, rows, metrics = self._observe(self._actor, *played, hyper, count)
        rows, metrics = to_numpy((rows, metrics))
        info = BlockInfo(metrics, published.gradient_steps, time.perf_counter() - started)
        return rows, info
