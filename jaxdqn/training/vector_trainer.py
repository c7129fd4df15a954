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
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.vector.base import HostEnvironment
from jaxdqn.errors import reject
from jaxdqn.training.algorithms import CustomParts, build_agent, make_learning
from jaxdqn.training.learner import Learner, make_learner
from jaxdqn.training.learning import no_extras
from jaxdqn.training.trainer import make_trainer
from jaxdqn.training.vector_functions import Acting, KeyBlock, Played, VectorFunctions
from jaxdqn.types import (
    Agent,
    Array,
    Counters,
    Hyper,
    Metrics,
    Params,
    PyTree,
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
    keys: Callable[[Array], KeyBlock]
    """``keys(key) -> keys`` of the next I iterations; see ``KeyBlock``"""
    warm_up_keys: Callable[[Array], Array]
    """``warm_up_keys(key) -> keys [blocks, I K]`` of the agent; the last block may have more keys
    than the warm-up takes."""
    begin: Callable[..., tuple[Acting, PyTree]]
    """``begin(actor, keys[I K], params, hyper, rows) -> (acting, extras)``: the actions of the
    first vector step of a chunk; ``rows`` are those before it, a ``Counter``."""
    advance: Callable[..., tuple[Acting, PyTree]]
    """``advance(acting, timestep, keys[I K], params, hyper) -> (acting, extras)``: the actions of
    the next vector step"""
    remember: Callable[[TrainState, Played], TrainState]
    """``remember(state, played) -> state``: store and count rows without learning"""
    learn: Callable[..., tuple[TrainState, Metrics, Params]]
    """``learn(state, total, index, keys, played) -> (state, total, params)``: store the rows of an
    iteration and take its gradient steps. ``total`` are the sums of the metrics of the chunk,
    ``index`` is that of the iteration in ``keys``, a ``KeyBlock``, and ``params`` a copy of the new
    parameters to act with."""
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
    functions = VectorFunctions(
        config, environment, learner, extras=made_learning.extras is not no_extras
    )
    return VectorTrainer(
        config=config,
        agent=made,
        environment=environment,
        learner=learner,
        init=functions.init,
        keys=functions.keys,
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
