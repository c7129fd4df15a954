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
from jaxdqn.envs.vector.base import HostEnvironment, time_step
from jaxdqn.errors import reject
from jaxdqn.training.algorithms import CustomParts, make_learning
from jaxdqn.training.guard import all_finite
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.keys import IterationKeys, split_named, typed_key
from jaxdqn.training.learner import Decision, Learner, make_learner
from jaxdqn.training.metrics import add_metrics, mean_metrics, reduce_metrics
from jaxdqn.training.trainer import made_agent, make_trainer
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


class Block(NamedTuple):
    """An iteration of acting that is under way."""

    actor: ActorState
    decision: Decision
    """Of the vector step whose time step has not arrived."""
    rows: Row
    """[K, E]; filled up to the present vector step."""
    metrics: Metrics
    """[K]"""


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
    begin: Callable[..., tuple[Block, Array]]
    """``begin(actor, keys[K, 1 + E], params, hyper, rows) -> (block, actions[E])``: the first
    vector step of an iteration; ``rows`` are those before it, a ``Counter``."""
    advance: Callable[..., tuple[Block, Array]]
    """``advance(block, k, timestep, keys, params, hyper, rows) -> (block, actions[E])``: vector
    step ``k``, from the time step that followed the last one."""
    end: Callable[..., tuple[ActorState, Row, Metrics]]
    """``end(rows, rest, timestep) -> (actor, rows[K, E], metrics)``, from a block in two parts: its
    rows, and the block without them"""
    remember: Callable[[TrainState, Row, ActorState, Metrics], TrainState]
    """``remember(state, rows, actor, metrics) -> state``: store and count rows without learning.
    The given state has an empty ``actor``."""
    learn: Callable[..., tuple[TrainState, Metrics, Params]]
    """``learn(state, total, key, keys, rows, actor, metrics) -> (state, total, params)``: store the
    rows and take the gradient steps. ``total`` are the sums of the metrics of the chunk, ``key`` is
    that of the state after the iteration, and ``params`` a copy of the new parameters to act
    with. The given state has an empty ``actor``."""
    no_metrics: Callable[[TrainState], Metrics]
    """``no_metrics(state) -> total`` before the first iteration of a chunk"""
    summarize: Callable[[TrainState, Metrics, Array], tuple[TrainState, Metrics]]
    """``summarize(state, total, iterations) -> (state, metrics)`` at the end of a chunk"""
    params: Callable[[PyTree], Params] = lambda state: state.agent.params
    counters: Callable[[TrainState], Counters] = lambda state: state.counters
    sharding: None = None
    mapped: bool = False
    replicas: int = 1


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
    made = made_agent(config, spec, collectives, network, custom)
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
        end=functions.end,
        remember=functions.remember,
        learn=functions.learn,
        no_metrics=functions.no_metrics,
        summarize=functions.summarize,
    )


def make_single_trainer(config: Config, **parts: Any) -> Trainer | VectorTrainer:
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
        key_agent, key_device = jax.random.split(typed_key(key))
        key_device = jax.random.fold_in(key_device, 0)
        _, _, key_run = jax.random.split(key_device, 3)
        timestep = zero_time_step(self.config, self.environment) if timestep is None else timestep
        return self.learner.init(key_agent, key_run, self.learner.start((), timestep), hyper)

    def warm_up_keys(self, key: Array) -> Array:
        _, key_device = jax.random.split(typed_key(key))
        key_warmup = jax.random.split(jax.random.fold_in(key_device, 0), 3)[1]
        shape = (self.config.warmup_iterations, *self.learner.key_shapes.act)
        return jax.random.split(key_warmup, shape)

    def _act(
        self, actor: ActorState, k: Array, keys: Array, params: Params, hyper: Hyper, rows: Counter
    ) -> Decision:
        count = counter_float(rows) + k.astype(jnp.float32) * self.config.num_envs
        return self.learner.act(keys[k, 0], params, hyper, count, actor)

    def begin(
        self, actor: ActorState, keys: Array, params: Params, hyper: Hyper, rows: Counter
    ) -> tuple[Block, Array]:
        decision = self._act(actor, jnp.int32(0), keys, params, hyper, rows)
        shapes = jax.eval_shape(self.learner.observe, actor, decision, (), actor.timestep)
        length = self.config.rollout_length
        stored, metrics = jax.tree.map(
            lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), shapes[1:]
        )
        return Block(actor, decision, stored, metrics), decision.actions

    def advance(
        self,
        block: Block,
        k: Array,
        timestep: TimeStep,
        keys: Array,
        params: Params,
        hyper: Hyper,
        rows: Counter,
    ) -> tuple[Block, Array]:
        block = self._store(block, k - 1, timestep)
        decision = self._act(block.actor, k, keys, params, hyper, rows)
        return block._replace(decision=decision), decision.actions

    def end(self, rows: Row, rest: Block, timestep: TimeStep) -> tuple[ActorState, Row, Metrics]:
        block = rest._replace(rows=rows)
        block = self._store(block, jnp.int32(self.config.rollout_length - 1), timestep)
        return block.actor, block.rows, reduce_metrics(block.metrics)

    def _store(self, block: Block, k: Array, timestep: TimeStep) -> Block:
        actor, row, metrics = self.learner.observe(block.actor, block.decision, (), timestep)
        rows, counts = jax.tree.map(
            lambda leaves, leaf: leaves.at[k].set(leaf),
            (block.rows, block.metrics),
            (row, metrics),
        )
        return block._replace(actor=actor, rows=rows, metrics=counts)

    def remember(
        self, state: TrainState, rows: Row, actor: ActorState, metrics: Metrics
    ) -> TrainState:
        return _count_env_steps(self.learner.remember(state, rows, actor), metrics)

    def learn(
        self,
        state: TrainState,
        total: Metrics,
        key: Array,
        keys: PyTree,
        rows: Row,
        actor: ActorState,
        metrics: Metrics,
    ) -> tuple[TrainState, Metrics, Params]:
        state, metrics = self._learn(state._replace(key=key), keys, rows, actor, metrics)
        total = add_metrics(total, metrics)
        return state, total, jax.tree.map(jnp.copy, state.agent.params)

    def _learn(
        self, state: TrainState, keys: PyTree, rows: Row, actor: ActorState, metrics: Metrics
    ) -> tuple[TrainState, Metrics]:
        state = self.learner.remember(state, rows, actor)
        return self.learner.learn(keys, state, rows, metrics)

    def no_metrics(self, state: TrainState) -> Metrics:
        def metrics_of(state: TrainState) -> Metrics:
            keys = split_named(state.key, self.learner.key_shapes)
            actor, params, hyper = state.actor, state.agent.params, state.hyper
            block, _ = self.begin(actor, keys.act, params, hyper, state.counters.rows)
            actor, rows, metrics = self.end(block.rows, block, actor.timestep)
            return self._learn(state, keys.learn, rows, actor, metrics)[1]

        shapes = jax.eval_shape(metrics_of, state)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def summarize(
        self, state: TrainState, total: Metrics, iterations: Array
    ) -> tuple[TrainState, Metrics]:
        lost = ~all_finite(state.agent.params)
        metrics = mean_metrics(total, iterations)._replace(lost=lost.astype(jnp.int32))
        return _count_env_steps(state, metrics), metrics


def _count_env_steps(state: TrainState, metrics: Metrics) -> TrainState:
    env_steps = counter_add(state.counters.env_steps, metrics.env_steps)
    return state._replace(counters=state.counters._replace(env_steps=env_steps))


def zero_time_step(config: Config, environment: HostEnvironment) -> TimeStep:
    """Return a time step of zeros that opens an episode in every environment."""
    spec, num_envs = environment.spec, config.num_envs
    no = np.zeros(num_envs, bool)
    obs = np.zeros((num_envs, *spec.obs_shape), spec.obs_dtype)
    return time_step(obs, np.zeros(num_envs), no, no, ~no, spec.obs_dtype)


AnyTrainer = Trainer | VectorTrainer
