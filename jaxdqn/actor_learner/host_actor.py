"""Actor with environments on the host, which step in Python; the agent is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn import envs
from jaxdqn.actor_learner.actor import acting_config, keys_of_block, learner_of_actor
from jaxdqn.actor_learner.initial_priorities import InitialPriorities, with_estimates
from jaxdqn.actor_learner.time_use import Compiled, TimeUse
from jaxdqn.actor_learner.workers import BlockInfo, Published, to_numpy
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.envs.vector.checked import CheckedEnvironments
from jaxdqn.envs.vector.restarts import Restarts
from jaxdqn.training.keys import seed_of, start_keys
from jaxdqn.training.learner import Learner
from jaxdqn.training.metrics import over_envs, reduce_metrics
from jaxdqn.training.vector_functions import Acting, Draws, VectorFunctions
from jaxdqn.types import (
    ActorState,
    Array,
    Counter,
    Hyper,
    Metrics,
    Params,
    PyTree,
    Row,
    TimeStep,
    counter_float,
    make_counter,
)


class HostActorFunctions(NamedTuple):
    """Pure functions of one actor, which has E environments on the host."""

    start: Callable[[TimeStep], ActorState]
    """``start(timestep) -> actor``: the acting state after a reset"""
    warm_up_draws: Callable[[Array, Hyper, Counter], Draws]
    """``warm_up_draws(key, hyper, rows) -> draws[W K, ...]`` for the warm-up; ``key`` is that of
    the run, and ``rows`` counts the rows of all actors before the warm-up."""
    draws: Callable[[Array, Hyper, Counter], tuple[Array, Draws]]
    """``draws(key, hyper, rows) -> (key, draws[I K, ...])`` for a block"""
    begin: Callable[[ActorState, Draws, Params], tuple[Acting, PyTree]]
    """``begin(actor, draws, params) -> (acting, extras)``: the first actions after a start"""
    advance: Callable[[Acting, TimeStep, Draws, Params], tuple[Acting, PyTree]]
    """``advance(acting, timestep, draws, params) -> (acting, extras)``: the next actions"""
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
    most_steps = max(config.warmup_iterations, iterations) * config.rollout_length
    functions = VectorFunctions(
        config, environment, learner, collectives, extras=False, most_steps=most_steps
    )

    def warm_up_draws(key: Array, hyper: Hyper, rows: Counter) -> Draws:
        shape = (config.warmup_iterations, *learner.key_shapes.act)
        keys = jax.random.split(start_keys(key, index).warm_up, shape)[:, :, 0]
        return functions.draws(keys.reshape(-1), hyper, rows)

    def draws(key: Array, hyper: Hyper, rows: Counter) -> tuple[Array, Draws]:
        key, act = keys_of_block(learner, key, iterations)
        return key, functions.draws(act[:, :, 0].reshape(-1), hyper, rows)

    return HostActorFunctions(
        start=functions.start,
        warm_up_draws=warm_up_draws,
        draws=draws,
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
        self._times = times = TimeUse()
        self._start_acting, self._observe = jax.jit(made.start), Compiled(made.observe, times)
        self._begin, self._advance = Compiled(made.begin, times), Compiled(made.advance, times)
        self._draws = Compiled(made.draws, times)
        self._warm_up_draws = Compiled(made.warm_up_draws, times)
        length = config.rollout_length
        self._warm_up_steps, self._steps = config.warmup_iterations * length, iterations * length
        self._key = jax.random.wrap_key_data(jnp.asarray(key_data))
        self._index, self._incarnation = index, 0
        self._envs = CheckedEnvironments(
            made.environment, made.num_envs, Restarts(config.restart_envs)
        )
        self._start(self._key)

    def _start(self, key: Array) -> None:
        """Start an episode in every environment."""
        keys = start_keys(key, self._index)
        self._run_key = keys.run
        self._actor = self._start_acting(self._envs.reset(seed_of(keys.envs)))
        self._position: tuple[Acting, TimeStep] | None = None

    def warm_up(self, published: Published, rows: int, incarnation: int) -> tuple[Row, BlockInfo]:
        """Act for the iterations of the warm-up."""

        def draw(hyper: Hyper, count: Counter) -> Draws:
            draws: Draws = self._warm_up_draws(self._key, hyper, count)
            return draws

        return self._act(published, rows, incarnation, draw, self._warm_up_steps)

    def block(self, published: Published, rows: int, incarnation: int) -> tuple[Row, BlockInfo]:
        """Act for the iterations of a block; see ``ActorWorker.block``."""

        def draw(hyper: Hyper, count: Counter) -> Draws:
            self._run_key, draws = self._draws(self._run_key, hyper, count)
            return draws

        return self._act(published, rows, incarnation, draw, self._steps)

    def _act(
        self,
        published: Published,
        before: int,
        incarnation: int,
        draw: Callable[[Hyper, Counter], Draws],
        steps: int,
    ) -> tuple[Row, BlockInfo]:
        """Return the rows of some vector steps, and the description of the block."""
        self._follow(incarnation)
        with self._times.spent("act") as spent:
            count = make_counter(before)
            params, hyper = jax.device_put((published.params, published.hyper))
            played = self._play(params, draw(hyper, count), steps)
            self._actor, rows, metrics = self._observe(self._actor, *played, hyper, count)
            rows, metrics = to_numpy((rows, metrics))
        return rows, BlockInfo(metrics, published.gradient_steps, spent.seconds)

    def _follow(self, incarnation: int) -> None:
        if incarnation != self._incarnation:
            self._incarnation = incarnation
            self._start(jax.random.fold_in(self._key, incarnation))

    def _play(self, params: Params, draws: Draws, steps: int) -> Any:
        """Act for some vector steps; return time steps, actions and extras [steps, E, ...]."""
        timesteps: list[TimeStep] = []
        chosen: list[np.ndarray] = []
        stored: list[PyTree] = []
        for _ in range(steps):
            if self._position is None:
                acting, extras = self._begin(self._actor, draws, params)
            else:
                last, timestep = self._position
                if not chosen:  # the first actions of this block need its draws
                    last = last._replace(step=jnp.int32(0))
                acting, extras = self._advance(last, timestep, draws, params)
            actions = np.asarray(acting.action)
            timestep = self._envs.step(actions)
            self._position = acting, timestep
            timesteps.append(timestep)
            chosen.append(actions)
            stored.append(jax.tree.map(np.asarray, extras))
        return jax.tree.map(
            lambda *leaves: np.stack(leaves), *zip(timesteps, chosen, stored, strict=True)
        )
