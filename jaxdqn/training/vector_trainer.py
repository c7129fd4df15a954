"""Trainer for environments on the host: the functions from which its programs are compiled.

The environments step on the host, and the device learns. An iteration acts K vector steps; then
one program stores the rows and takes M gradient steps. With ``overlap`` the gradient steps of an
iteration run while the next iteration acts with parameters that are one iteration old. Otherwise
the next iteration waits for them. In both modes the ratio of gradient steps to rows is exactly the
configured one.
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
from jaxdqn.training.resets import resolve_reset
from jaxdqn.training.trainer import make_trainer
from jaxdqn.training.vector_functions import (
    Acting,
    Draws,
    KeyBlock,
    Played,
    VectorFunctions,
    block_length,
)
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
    Reset,
    TimeStep,
    Trainer,
    TrainState,
)


def acting_text(config: Config) -> str:
    """Return when the environments on the host act, and the option that decides it."""
    if config.overlap:
        return "while the device learns, on parameters one iteration old (overlap, the default)"
    return "in turn with learning, on the newest parameters (--no-overlap)"


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
    """``start(timestep) -> actor``: the acting state after a reset"""
    keys: Callable[[Array, Hyper, Counter], KeyBlock]
    """``keys(key, hyper, rows) -> keys`` of the next I iterations, after a number of rows; see
    ``KeyBlock``"""
    warm_up_keys: Callable[[Array], Array]
    """``warm_up_keys(key) -> keys [blocks, I K]`` of the agent, from the key of the run. The last
    block may contain more keys than the warm-up needs."""
    refill_keys: Callable[[Array], tuple[Array, Array]]
    """``refill_keys(key) -> (key, keys)``: keys for another warm-up, from the key of a state"""
    block: Callable[[Array, Array, Hyper, Counter], Draws]
    """``block(keys, index, hyper, rows) -> draws [I K, ...]``"""
    begin: Callable[[ActorState, Draws, Params], tuple[Acting, PyTree]]
    """``begin(actor, draws[I K, ...], params) -> (acting, extras)``: choose the actions of the
    first vector step of a chunk"""
    advance: Callable[[Acting, TimeStep, Draws, Params], tuple[Acting, PyTree]]
    """``advance(acting, timestep, draws[I K, ...], params) -> (acting, extras)``: choose the
    actions of the next vector step"""
    remember: Callable[[TrainState, Played], TrainState]
    """``remember(state, played) -> state``: store and count rows without learning"""
    empty_replay: Callable[[TrainState], TrainState]
    """``empty_replay(state) -> state`` with an empty replay"""
    learn: Callable[..., tuple[TrainState, Metrics, Params]]
    """``learn(state, total, index, keys, played) -> (state, total, params)``: store the rows of an
    iteration and take its gradient steps. ``total`` holds the sums of the metrics of the chunk,
    ``index`` is the index of the iteration in the ``KeyBlock`` ``keys``, and ``params`` is a copy
    of the new parameters for acting."""
    begin_chunk: Callable[[TrainState], tuple[Array, Hyper, Counter, Params, Metrics]]
    """``begin_chunk(state) -> (key, hyper, rows, params, total)``: copies of arrays that ``learn``
    donates, and zeros for the sums of the metrics"""
    summarize: Callable[[TrainState, Metrics, Array], tuple[TrainState, Metrics, Counters]]
    """``summarize(state, total, iterations) -> (state, metrics, counters)``, called at the end of a
    chunk"""
    params: Callable[[PyTree], Params] = lambda state: state.agent.params
    counters: Callable[[TrainState], Counters] = lambda state: state.counters
    sharding: Callable[[PyTree], PyTree] | None = None
    """As ``Trainer.sharding``."""
    replicas: int = 1
    """D, the number of replicas"""
    mapped: bool = False
    """True if a mapping made this trainer. Leaves then have a leading axis [D]; time steps and
    actions are [D, E/D]. Exceptions without this axis: the key of the run, the hyper-parameters of
    ``init``, ``index``, and the metrics and counters of ``summarize``."""

    @property
    def reset(self) -> Reset:
        """Resets of the environments, which reset themselves at the step after an episode."""
        return "every-step"


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
      config: configuration of the run.
      environment: the host environment.
      collectives: communication between replicas.
      network, optimizer, replay, explore, loss, learning, agent: see ``make_trainer``.

    Raises:
      ValueError: naming the field, its value and the valid values.
    """
    config = resolve_reset(config, environment)
    _check_host(config)
    environment = envs.with_host_options(config, environment)
    custom = CustomParts(optimizer, replay, explore, loss, learning, agent)
    spec = environment.spec
    made = build_agent(config, spec, collectives, network, custom)
    made_learning = make_learning(config, made, collectives, custom)
    learner = make_learner(config, spec, made, made_learning, collectives)
    functions = VectorFunctions(
        config,
        environment,
        learner,
        collectives,
        extras=made_learning.extras is not no_extras,
        most_steps=block_length(config) * config.rollout_length,
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
      config: configuration of the run.
      parts: keyword arguments of ``make_trainer``; ``environment`` may be a ``HostEnvironment``.

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
    "full_action_set": False,
    "replay_from": None,
}
"""Options not yet supported with environments on the host, and the values they must have."""


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
