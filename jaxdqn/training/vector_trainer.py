"""The trainer of environments on the host: the functions that its programs are compiled from.

The environments play on the host while the device learns. An iteration acts K vector steps in
them, then stores the rows and takes M gradient steps in one program. With ``overlap`` the gradient
steps of an iteration run while the next one acts, on parameters that are one iteration old;
otherwise the next one waits for them. The ratio of gradient steps to rows is exactly that of the
configuration in both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn import envs
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.frame_stack import push_frame
from jaxdqn.envs.vector.base import HostEnvironment, time_step
from jaxdqn.errors import reject
from jaxdqn.training.algorithms import CustomParts, build_agent, make_learning
from jaxdqn.training.guard import all_finite
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.keys import IterationKeys, split_named, start_keys
from jaxdqn.training.learner import Learner, make_learner
from jaxdqn.training.metrics import add_metrics, mean_metrics, reduce_metrics
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import (
    ActorState,
    Agent,
    Array,
    Counter,
    Counters,
    Hyper,
    Metrics,
    Params,
    PyTree,
    Row,
    TimeStep,
    Trainer,
    TrainState,
    counter_add,
    counter_float,
)


class Acting(NamedTuple):
    """Part of the state of acting that the actions depend on."""

    frames: PyTree
    """``ActorState.frames`` before the newest observation"""
    carry: PyTree
    action: Array
    """[E] int32, the last action"""


class Played(NamedTuple):
    """K vector steps in the environments."""

    timesteps: TimeStep
    """leaves [K, E, ...], the results of the actions"""
    actions: Array
    """[K, E] int32"""
    extras: tuple[PyTree, ...]
    """K times the ``extras`` of the rows, leaves [E, ...]"""
    carry: PyTree
    """Recurrent carry after the last observation but one"""


class VectorTrainer(NamedTuple):
    """Pure functions of a training run whose environments are on the host.

    The state is a ``TrainState`` whose ``actor.env_state`` is empty.
    """

    config: Config
    agent: Agent
    environment: HostEnvironment
    learner: Learner
    init: Callable[..., TrainState]
    """``init(key, hyper=defaults, timestep=zeros) -> state`` before the warm-up"""
    keys: Callable[[Array], IterationKeys]
    """``keys(key) -> keys`` of an iteration"""
    warm_up_keys: Callable[[Array], Array]
    """``warm_up_keys(key) -> keys [I, K, 1 + E]``"""
    begin: Callable[..., tuple[Acting, PyTree]]
    """``begin(actor, keys[K, 1 + E], params, hyper, rows) -> (acting, extras)``: the actions of the
    first vector step of a chunk; ``rows`` are those before it, a ``Counter``."""
    advance: Callable[..., tuple[Acting, PyTree]]
    """``advance(acting, k, timestep, keys, params, hyper, rows) -> (acting, extras)``: the actions
    of vector step ``k`` of an iteration, before which there were ``rows``"""
    remember: Callable[[TrainState, Played], TrainState]
    """``remember(state, played) -> state``: store and count rows without learning"""
    learn: Callable[..., tuple[TrainState, Metrics, Params]]
    """``learn(state, total, key, keys, played) -> (state, total, params)``: store the rows and take
    the gradient steps. ``total`` are the sums of the metrics of the chunk, ``key`` is that of the
    state after the iteration, and ``params`` a copy of the new parameters to act with."""
    begin_chunk: Callable[[TrainState], tuple[Array, Hyper, Params, Metrics]]
    """``begin_chunk(state) -> (key, hyper, params, total)``: copies of what ``learn`` donates, and
    zeros for the sums of the metrics"""
    summarize: Callable[[TrainState, Metrics, Array], tuple[TrainState, Metrics]]
    """``summarize(state, total, iterations) -> (state, metrics)`` at the end of a chunk"""
    params: Callable[[PyTree], Params] = lambda state: state.agent.params
    counters: Callable[[TrainState], Counters] = lambda state: state.counters
    sharding: None = None
    mapped: bool = False


AnyTrainer = Trainer | VectorTrainer


def make_vector_trainer(
    config: Config,
    environment: HostEnvironment,
    *,
    network: Any = None,
    optimizer: Any = None,
    replay: Any = None,
    explore: Any = None,
    loss: Any = None,
    learning: Any = None,
    agent: Any = None,
) -> VectorTrainer:
    """Make the trainer of an environment on the host, for one device and one learner.

    Args:
      config: the run.
      environment: on the host.
      network, optimizer, replay, explore, loss, learning, agent: as ``make_trainer``.

    Raises:
      ValueError: naming the field, its value and the valid values.
    """
    _check_host(config)
    custom = CustomParts(optimizer, replay, explore, loss, learning, agent)
    spec, collectives = environment.spec, identity_collectives
    made = build_agent(config, spec, collectives, network, custom)
    made_learning = make_learning(config, made, collectives, custom)
    learner = make_learner(config, spec, made, made_learning, collectives)
    functions = _Functions(config, environment, learner)
    return VectorTrainer(
        config=config,
        agent=made,
        environment=environment,
        learner=learner,
        init=functions.init,
        keys=lambda key: split_named(key, learner.key_shapes),
        warm_up_keys=functions.warm_up_keys,
        begin=functions.begin,
        advance=functions.advance,
        remember=functions.remember,
        learn=functions.learn,
        begin_chunk=functions.begin_chunk,
        summarize=functions.summarize,
    )


def make_single_trainer(config: Config, **parts: Any) -> AnyTrainer:
    """Make the trainer of one device and one learner, for any kind of environment.

    Args:
      config: the run.
      parts: as ``make_trainer`` takes them; ``environment`` may be a ``HostEnvironment``.

    Raises:
      ValueError: as ``make_trainer`` and ``make_vector_trainer``.
    """
    host = envs.configured_host_environment(config, parts.get("environment"))
    if host is None:
        return make_trainer(config, **parts)
    return make_vector_trainer(config, **{**parts, "environment": host})


_REQUIRED = {
    "devices": 1,
    "num_seeds": 1,
    "sweep": (),
    "reset": "every-step",
    "sticky_actions": 0.0,
    "full_action_set": False,
    "replay_from": None,
}
"""Options that environments on the host do not support yet, with the values that they need."""


def _check_host(config: Config) -> None:
    for name, wanted in _REQUIRED.items():
        value = getattr(config, name)
        if value != wanted:
            reject(name, value, f"{wanted!r} with an environment on the host")
    if jax.process_count() > 1:
        reject("env", config.env, "one on the device with several processes")


class _Functions(NamedTuple):
    """Functions of a ``VectorTrainer``, which documents them."""

    config: Config
    environment: HostEnvironment
    learner: Learner

    def init(
        self, key: Array, hyper: Hyper | None = None, timestep: TimeStep | None = None
    ) -> TrainState:
        hyper = hyper_from(self.config) if hyper is None else hyper
        keys = start_keys(key, 0)
        timestep = zero_time_step(self.config, self.environment) if timestep is None else timestep
        return self.learner.init(keys.agent, keys.run, self.learner.start((), timestep), hyper)

    def warm_up_keys(self, key: Array) -> Array:
        shape = (self.config.warmup_iterations, *self.learner.key_shapes.act)
        return jax.random.split(start_keys(key, 0).warm_up, shape)

    def begin(
        self, actor: ActorState, keys: Array, params: Params, hyper: Hyper, rows: Counter
    ) -> tuple[Acting, PyTree]:
        count = counter_float(rows)
        decision = self.learner.act(keys[0, 0], params, hyper, count, actor)
        return Acting(actor.frames, decision.carry, decision.actions), decision.extras

    def advance(
        self,
        acting: Acting,
        k: Array,
        timestep: TimeStep,
        keys: Array,
        params: Params,
        hyper: Hyper,
        rows: Counter,
    ) -> tuple[Acting, PyTree]:
        count = counter_float(rows) + k.astype(jnp.float32) * self.config.num_envs
        frames = push_frame(acting.frames, timestep.obs, timestep.first)
        no_statistics: Any = None  # no action depends on them
        actor = ActorState((), timestep, frames, acting.carry, no_statistics, acting.action)
        decision = self.learner.act(keys[k, 0], params, hyper, count, actor)
        return Acting(frames, decision.carry, decision.actions), decision.extras

    def _rows(self, state: TrainState, played: Played) -> tuple[ActorState, Row, Metrics]:
        """Return the state of acting after an iteration, its rows [K, E] and its metrics."""
        length, num_envs = self.config.rollout_length, self.config.num_envs
        rows = counter_float(state.counters.rows)

        def observe(actor: ActorState, inputs: Any) -> tuple[ActorState, tuple[Row, Metrics]]:
            k, actions, extras, timestep = inputs
            decision = self.learner.recall(
                state.hyper, rows + k * num_envs, actor, actions, played.carry, extras
            )
            actor, row, metrics = self.learner.observe(actor, decision, (), timestep)
            return actor, (row, metrics)

        steps = jnp.arange(length, dtype=jnp.float32)
        extras = jax.tree.map(lambda *leaves: jnp.stack(leaves), *played.extras)
        actor, (stored, metrics) = jax.lax.scan(
            observe,
            state.actor._replace(carry=played.carry),
            (steps, played.actions, extras, played.timesteps),
        )
        return actor, stored, reduce_metrics(metrics)

    def remember(self, state: TrainState, played: Played) -> TrainState:
        actor, rows, metrics = self._rows(state, played)
        return _count_env_steps(self.learner.remember(state, rows, actor), metrics)

    def learn(
        self, state: TrainState, total: Metrics, key: Array, keys: PyTree, played: Played
    ) -> tuple[TrainState, Metrics, Params]:
        state, metrics = self._learn(state._replace(key=key), keys, played)
        total = add_metrics(total, metrics)
        return state, total, jax.tree.map(jnp.copy, state.agent.params)

    def _learn(self, state: TrainState, keys: PyTree, played: Played) -> tuple[TrainState, Metrics]:
        actor, rows, metrics = self._rows(state, played)
        state = self.learner.remember(state, rows, actor)
        return self.learner.learn(keys, state, rows, metrics)

    def begin_chunk(self, state: TrainState) -> tuple[Array, Hyper, Params, Metrics]:
        played = played_shape(self.config, self.begin, state)

        def metrics_of(state: TrainState, played: Played) -> Metrics:
            keys = split_named(state.key, self.learner.key_shapes)
            return self._learn(state, keys.learn, played)[1]

        shapes = jax.eval_shape(metrics_of, state, played)
        total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        copies = jax.tree.map(jnp.copy, (state.key, state.hyper, state.agent.params))
        return *copies, total

    def summarize(
        self, state: TrainState, total: Metrics, iterations: Array
    ) -> tuple[TrainState, Metrics]:
        lost = ~all_finite(state.agent.params)
        metrics = mean_metrics(total, iterations)._replace(lost=lost.astype(jnp.int32))
        return _count_env_steps(state, metrics), metrics


def _count_env_steps(state: TrainState, metrics: Metrics) -> TrainState:
    env_steps = counter_add(state.counters.env_steps, metrics.env_steps)
    return state._replace(counters=state.counters._replace(env_steps=env_steps))


def played_shape(config: Config, begin: Callable[..., Any], state: TrainState) -> Played:
    """Return the shapes of the vector steps of an iteration; computes nothing.

    Args:
      config: the run.
      begin: ``VectorTrainer.begin``
      state: a state or its shapes.
    """
    length = config.rollout_length
    keys = jax.eval_shape(
        lambda key: jax.random.split(key, (length, 1 + config.num_envs)), state.key
    )
    acting, extras = jax.eval_shape(
        begin, state.actor, keys, state.agent.params, state.hyper, state.counters.rows
    )
    timesteps, actions = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((length, *leaf.shape), leaf.dtype),
        (state.actor.timestep, acting.action),
    )
    return Played(timesteps, actions, (extras,) * length, acting.carry)


def zero_time_step(config: Config, environment: HostEnvironment) -> TimeStep:
    """Return a time step of zeros that opens an episode in every environment."""
    spec, num_envs = environment.spec, config.num_envs
    no = np.zeros(num_envs, bool)
    obs = np.zeros((num_envs, *spec.obs_shape), spec.obs_dtype)
    return time_step(obs, np.zeros(num_envs), no, no, ~no, spec.obs_dtype)
