"""The trainer: one iteration of acting and learning on one device, and chunks of iterations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn import envs
from jaxdqn.agent.options import Optimizer
from jaxdqn.communication.averaging import make_average
from jaxdqn.communication.collectives import Collectives, identity_collectives
from jaxdqn.config.config import Config, replace
from jaxdqn.errors import reject
from jaxdqn.training.acting import make_act
from jaxdqn.training.algorithms import (
    CustomParts,
    MakeAgent,
    MakeLearning,
    MakeReplay,
    build_agent,
    make_learning,
)
from jaxdqn.training.guard import all_finite
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.keys import split_named, start_keys
from jaxdqn.training.learner import Learner, make_learner
from jaxdqn.training.metrics import all_reduce_metrics, mean_metrics, scan_and_add
from jaxdqn.training.resets import choose_reset
from jaxdqn.types import (
    ActorState,
    Agent,
    AgentState,
    Array,
    BatchLoss,
    Environment,
    Explore,
    Hyper,
    Metrics,
    Network,
    PyTree,
    Row,
    Trainer,
    TrainState,
    counter_add,
)

_DISABLE_JIT = "jax_disable_jit"


def make_trainer(
    config: Config,
    *,
    environment: Any = None,
    network: Any = None,
    optimizer: Optimizer | None = None,
    replay: MakeReplay | None = None,
    explore: Explore | None = None,
    loss: BatchLoss | None = None,
    learning: MakeLearning | None = None,
    agent: Agent | MakeAgent | None = None,
    collectives: Collectives = identity_collectives,
    around_network: Callable[[Network], Network] = lambda network: network,
) -> Trainer:
    """Make the trainer of a configuration.

    Args:
      config: configuration of the run; its totals are divided over ``collectives.size`` replicas.
      environment: a custom environment, instead of ``config.env``: an ``Environment``, a gymnax
        environment, or a pair of a gymnax environment and its parameters.
      network: a custom flax module (``obs[B, O] -> q[B, A]``) or ``Network``, instead of
        ``config.network``.
      optimizer: a custom ``hyper -> optax.GradientTransformation``, instead of the optimiser,
        clipping and schedule of ``config``. With several replicas it receives the mean of their
        gradients, which are compressed if ``config.compression`` is set.
      replay: a custom ``config -> Replay`` with any layout and sampling scheme. For a recurrent
        network, its batches must be sequences, rows [B, L, ...].
      explore: a custom exploration, instead of ``config.exploration``.
      loss: a custom loss of a batch, instead of ``config.loss``. The built-in network still has the
        head that ``config.loss`` needs.
      learning: a custom ``(config, agent, collectives) -> Learning``: the content of rows, the
        replay and the gradient steps, instead of those of ``config.algorithm``.
      agent: a custom ``Agent`` instead of network, loss, exploration policy and optimiser. Several
        replicas need a function ``(config, spec, collectives) -> Agent`` in its place.
      collectives: communication between replicas.
      around_network: function that wraps the network, built-in or custom, such as
        ``split_network``.

    Raises:
      ValueError: if a custom part is invalid or conflicts with another part or an option, if the
        environment is on the host, or if ``collectives`` do not fit the number of replicas.
    """
    size, replicas = collectives.size, config.replicas
    if size != replicas:
        raise ValueError(
            f"devices={config.devices}: must give collectives.size={size} replicas, not "
            f"{replicas}; pass collectives=device_collectives({replicas}) and map the trainer with "
            "across_devices, or call jaxdqn.run.run, which does both"
        )
    host = envs.configured_host_environment(config, environment)
    if host is not None:
        reject("environment", host.spec.name, "on the device; make_vector_trainer makes the "
               "trainer for the host, and jaxdqn.run.run accepts both")  # fmt: skip
    environment = envs.configured_environment(config, environment)
    for name, wanted in {"overlap": True, "env_processes": False, "restart_envs": 0,
                         "check_bounds": False, "act_on": "device"}.items():  # fmt: skip
        if getattr(config, name) != wanted:
            reject(name, getattr(config, name), f"{wanted} with an environment on the device")
    reset = choose_reset(config, environment).reset
    config = replace(config, reset=reset)
    custom = CustomParts(optimizer, replay, explore, loss, learning, agent)
    agent = build_agent(config, environment.spec, collectives, network, custom, around_network)
    made_learning = make_learning(config, agent, collectives, custom)
    learner = make_learner(config, environment.spec, agent, made_learning, collectives)
    parts = _Parts(
        config=config,
        collectives=collectives,
        environment=environment,
        learner=learner,
        act=make_act(config, environment, learner),
        remember=made_learning.remember,
        average=make_average(config, collectives, target_period=agent.target_period),
    )
    trainer = Trainer(
        init=partial(_init, parts),
        step=partial(_step, parts),
        agent=agent,
        environment=environment,
        refill=partial(_refill, parts),
        preload=partial(_preload, parts),
        chunk=partial(_chunk, parts),
        replicas=collectives.size,
        reset=reset,
        chunk_of=None if config.iterations_per_average > 1 else partial(_chunk_of, parts),
    )
    jit_disabled: Any = getattr(jax.config, _DISABLE_JIT)
    if not jit_disabled and collectives.size == 1 and config.model_devices == 1 and any(custom[1:]):
        # Trace the step now, so that a custom part with wrong shapes is rejected here. Without jit,
        # custom parts are called with values and need no trace.
        jax.eval_shape(trainer.step, jax.eval_shape(trainer.init, jax.random.key(0)))
    return trainer


def train(config: Config, **parts: Any) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make a complete run as a pure function ``(key, hyper=defaults) -> (TrainState, Metrics)``.

    Jit the function, and vmap it over keys (and ``hyper``) to train many learners at once. The
    metrics have leaves [chunks, ...]. ``parts`` are the keyword arguments of ``make_trainer``.

    Raises:
      ValueError: if ``make_trainer`` raises it, or if ``num_seeds`` or ``sweep`` differs from its
        default, because the function trains one learner.
    """
    for name, default in (("num_seeds", 1), ("sweep", ())):
        value = getattr(config, name)
        if value != default:
            raise ValueError(
                f"{name}={value!r}: must be {default!r}, because train makes one learner; vmap it "
                "over keys and hyper-parameters, or use population or jaxdqn.run.run"
            )
    trainer = make_trainer(config, **parts)
    chunk = trainer.chunk(config.iterations_per_chunk)

    def run(key: Array, hyper: Hyper | None = None) -> tuple[TrainState, Metrics]:
        state = trainer.init(key, hyper)
        return jax.lax.scan(lambda state, _: chunk(state), state, None, length=config.num_chunks)

    return run


class _Parts(NamedTuple):
    """Parts of a trainer, bound to its functions as their first argument."""

    config: Config
    collectives: Collectives
    environment: Environment
    learner: Learner
    act: Callable[[Array, TrainState], tuple[Row, ActorState, Metrics]]
    remember: Callable[[PyTree, Row], PyTree]
    """``Learning.remember``"""
    average: Callable[[AgentState], tuple[AgentState, Array]]


def _init(parts: _Parts, key: Array, hyper: Hyper | None = None) -> TrainState:
    return _warm_up(parts, *_begin(parts, key, hyper))


def _preload(parts: _Parts, key: Array, rows: Row, hyper: Hyper | None = None) -> TrainState:
    state, key_warmup = _begin(parts, key, hyper)
    replay, _ = jax.lax.scan(
        lambda replay, rows: (parts.remember(replay, rows), None), state.replay, rows
    )
    return _warm_up(parts, state._replace(replay=replay), key_warmup)


def _refill(parts: _Parts, state: TrainState) -> TrainState:
    key, key_warmup = jax.random.split(state.key)
    empty = parts.learner.empty_replay(state.agent, state.actor)
    return _warm_up(parts, state._replace(key=key, replay=empty), key_warmup)


def _begin(parts: _Parts, key: Array, hyper: Hyper | None) -> tuple[TrainState, Array]:
    """Return the state before the warm-up, and the key for the warm-up.

    The agent is the same on all devices; environments and keys differ between devices.
    """
    hyper = hyper_from(parts.config) if hyper is None else hyper
    keys = start_keys(key, parts.collectives.index())
    keys_envs = jax.random.split(keys.envs, parts.config.envs_per_device)
    actor = parts.learner.start(*jax.vmap(parts.environment.reset)(keys_envs))
    return parts.learner.init(keys.agent, keys.run, actor, hyper), keys.warm_up


def _warm_up(parts: _Parts, state: TrainState, key: Array) -> TrainState:
    """Fill the replay by acting without learning, for ``config.warmup_iterations``."""
    iterations = parts.config.warmup_iterations
    if iterations == 0:
        return state
    keys = jax.random.split(key, (iterations, *parts.learner.key_shapes.act))

    def act(state: TrainState, keys: Array) -> tuple[TrainState, tuple[()], Metrics]:
        state, metrics, _ = _act_and_remember(parts, keys, state)
        return state, (), metrics

    state, _, metrics = scan_and_add(act, state, keys, pack=_packs(parts))
    return _count_over_devices(parts, state, mean_metrics(metrics, iterations))[0]


def _act_and_remember(
    parts: _Parts, keys: Array, state: TrainState
) -> tuple[TrainState, Metrics, Row]:
    """Act K vector steps and add their rows to the replay."""
    rows, actor, metrics = parts.act(keys, state)
    return parts.learner.remember(state, rows, actor), metrics, rows


def _iterate(parts: _Parts, state: TrainState) -> tuple[TrainState, Metrics]:
    """Run one iteration; the metrics cover this device only."""
    keys = split_named(state.key, parts.learner.key_shapes)
    state, metrics, rows = _act_and_remember(parts, keys.act, state._replace(key=keys.next))
    return parts.learner.learn(keys.learn, state, rows, metrics)


def _iterate_and_average(parts: _Parts, state: TrainState) -> tuple[TrainState, Metrics]:
    """Run the iterations between two averagings of the parameters, then average them."""
    iterations = parts.config.iterations_per_average
    state, metrics = _repeat(parts, partial(_iterate, parts), state, iterations)
    agent_state, gap = parts.average(state.agent)
    metrics = metrics._replace(averagings=jnp.int32(1), gap_sum=gap)
    return state._replace(agent=agent_state), metrics


def _repeat(
    parts: _Parts,
    step: Callable[[TrainState], tuple[TrainState, Metrics]],
    state: TrainState,
    times: int,
) -> tuple[TrainState, Metrics]:
    """Repeat a step and reduce the metrics over all repetitions."""

    def body(state: TrainState, _: None) -> tuple[TrainState, tuple[()], Metrics]:
        state, metrics = step(state)
        return state, (), metrics

    state, _, metrics = scan_and_add(body, state, length=times, pack=_packs(parts))
    return state, mean_metrics(metrics, times)


def _packs(parts: _Parts) -> bool:
    """Return True if the loop may pack small leaves; sharded parameters must not be packed."""
    return parts.config.model_devices == 1


def _count_over_devices(
    parts: _Parts, state: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """All-reduce the metrics and add their environment steps to the counters."""
    metrics = all_reduce_metrics(metrics, parts.collectives)
    env_steps = counter_add(state.counters.env_steps, metrics.env_steps)
    return state._replace(counters=state.counters._replace(env_steps=env_steps)), metrics


def _step(parts: _Parts, state: TrainState) -> tuple[TrainState, Metrics]:
    return _count_over_devices(parts, *_iterate(parts, state))


def _chunk(parts: _Parts, iterations: int) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
    group = parts.config.iterations_per_average
    if iterations < 1 or iterations % group:
        raise ValueError(f"iterations={iterations}: must be a positive multiple of {group}")
    body = _iterate_and_average if group > 1 else _iterate

    def chunk(state: TrainState) -> tuple[TrainState, Metrics]:
        state, metrics = _repeat(parts, partial(body, parts), state, iterations // group)
        lost = ~all_finite(state.agent.params)
        metrics = metrics._replace(lost=lost.astype(jnp.int32))
        return _count_over_devices(parts, state, metrics)

    return chunk


def _chunk_of(
    parts: _Parts, step: Callable[[TrainState], tuple[TrainState, Metrics]]
) -> Callable[[int], Callable[[TrainState], tuple[TrainState, Metrics]]]:
    """Return ``chunk`` for a trainer whose ``step`` was replaced."""

    def chunk_of_step(iterations: int) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        if iterations < 1:
            raise ValueError(f"iterations={iterations}: must be at least 1")

        def chunk(state: TrainState) -> tuple[TrainState, Metrics]:
            state, metrics = _repeat(parts, step, state, iterations)
            lost = parts.collectives.max((~all_finite(state.agent.params)).astype(jnp.int32))
            return state, metrics._replace(lost=lost)

        return chunk

    return chunk_of_step
