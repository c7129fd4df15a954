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

from jaxdqn import envs
from jaxdqn.communication.collectives import Collectives, identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.errors import reject
from jaxdqn.training.algorithms import CustomParts, build_agent, make_learning
from jaxdqn.training.learner import Learner, make_learner
from jaxdqn.training.learning import no_extras
from jaxdqn.training.trainer import make_trainer
from jaxdqn.training.vector_functions import Acting, KeyBlock, Played, VectorFunctions
from jaxdqn.types import (
    ActorState,
    Agent,
    Array,
    Counters,
    Hyper,
    Metrics,
    Params,
    PyTree,
    TimeStep,
    Trainer,
    TrainState,
)


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
    start: Callable[[TimeStep], ActorState]
    """``start(timestep) -> actor``: the state of acting after a reset"""
    keys: Callable[[Array], KeyBlock]
    """``keys(key) -> keys`` of the next I iterations; see ``KeyBlock``"""
    warm_up_keys: Callable[[Array], Array]
    """``warm_up_keys(key) -> keys [blocks, I K]`` of the agent, from the key of the run; the last
    block may have more keys than the warm-up takes."""
    refill_keys: Callable[[Array], tuple[Array, Array]]
    """``refill_keys(key) -> (key, keys)``: for a second warm-up, from the key of a state"""
    block: Callable[[Array, Array], Array]
    """``block(keys, index) -> keys [I K]``"""
    begin: Callable[..., tuple[Acting, PyTree]]
    """``begin(actor, keys[I K], params, hyper, rows) -> (acting, extras)``: the actions of the
    first vector step of a chunk; ``rows`` are those before it, a ``Counter``."""
    advance: Callable[..., tuple[Acting, PyTree]]
    """``advance(acting, timestep, keys[I K], params, hyper) -> (acting, extras)``: the actions of
    the next vector step"""
    remember: Callable[[TrainState, Played], TrainState]
    """``remember(state, played) -> state``: store and count rows without learning"""
    empty_replay: Callable[[TrainState], TrainState]
    """``empty_replay(state) -> state`` without rows"""
    learn: Callable[..., tuple[TrainState, Metrics, Params]]
    """``learn(state, total, index, keys, played) -> (state, total, params)``: store the rows of an
    iteration and take its gradient steps. ``total`` are the sums of the metrics of the chunk,
    ``index`` is that of the iteration in ``keys``, a ``KeyBlock``, and ``params`` a copy of the new
    parameters to act with."""
    begin_chunk: Callable[[TrainState], tuple[Array, Hyper, Params, Metrics]]
    """``begin_chunk(state) -> (key, hyper, params, total)``: copies of what ``learn`` donates, and
    zeros for the sums of the metrics"""
    summarize: Callable[[TrainState, Metrics, Array], tuple[TrainState, Metrics, Counters]]
    """``summarize(state, total, iterations) -> (state, metrics, counters)`` at the end of a
    chunk"""
    params: Callable[[PyTree], Params] = lambda state: state.agent.params
    counters: Callable[[TrainState], Counters] = lambda state: state.counters
    sharding: Callable[[PyTree], PyTree] | None = None
    """As ``Trainer.sharding``."""
    replicas: int = 1
    """D, the number of replicas"""
    mapped: bool = False
    """True if a mapping made this trainer: leaves then have a leading axis [D], time steps and
    actions [D, E/D], except the key of the run, hyper-parameters of ``init``, ``index``, and the
    metrics and counters of ``summarize``"""


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
    collectives: Collectives = identity_collectives,
) -> VectorTrainer:
    """Make the trainer of an environment on the host, for one replica of one learner.

    Args:
      config: the run.
      environment: on the host.
      collectives: communication between replicas.
      network, optimizer, replay, explore, loss, learning, agent: as ``make_trainer``.

    Raises:
      ValueError: naming the field, its value and the valid values.
    """
    _check_host(config)
    custom = CustomParts(optimizer, replay, explore, loss, learning, agent)
    spec = environment.spec
    made = build_agent(config, spec, collectives, network, custom)
    made_learning = make_learning(config, made, collectives, custom)
    learner = make_learner(config, spec, made, made_learning, collectives)
    functions = VectorFunctions(
        config, environment, learner, collectives, extras=made_learning.extras is not no_extras
    )
    return VectorTrainer(
        config=config,
        agent=made,
        environment=environment,
        learner=learner,
        init=functions.init,
        start=functions.start,
        keys=functions.keys,
        warm_up_keys=functions.warm_up_keys,
        refill_keys=functions.refill_keys,
        block=functions.block,
        begin=functions.begin,
        advance=functions.advance,
        remember=functions.remember,
        empty_replay=functions.empty_replay,
        learn=functions.learn,
        begin_chunk=functions.begin_chunk,
        summarize=functions.summarize,
        replicas=collectives.size,
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
    "model_devices": 1,
    "average_every": None,
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
    if config.act_on == "cpu" and config.devices > 1:
        reject(
            "act_on", "cpu", "device with several devices, which each act for their environments"
        )
    if jax.process_count() > 1:
        reject("env", config.env, "one on the device with several processes")
