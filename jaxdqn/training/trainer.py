"""The per-device step: act, remember, learn; and what is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn import envs
from jaxdqn.agent.agent import Optimizer, make_agent
from jaxdqn.agent.optimizer import average_first, make_optimizer
from jaxdqn.agent.sequence_loss import sequences_of
from jaxdqn.communication.averaging import make_average
from jaxdqn.communication.collectives import Collectives, identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.frame_stack import observed
from jaxdqn.networks import make_network
from jaxdqn.training.acting import make_act, reset_actor
from jaxdqn.training.dqn import make_learning
from jaxdqn.training.guard import all_finite
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.learning import Learning, make_learn
from jaxdqn.training.metrics import over_devices, reduce_metrics
from jaxdqn.training.pqn import make_pqn
from jaxdqn.training.r2d2 import make_sequence_learning
from jaxdqn.types import (
    Agent,
    Array,
    Counters,
    Environment,
    Hyper,
    Metrics,
    Network,
    PyTree,
    Row,
    Trainer,
    TrainState,
    counter_add,
    make_counter,
)


def make_trainer(
    config: Config,
    *,
    environment: Environment | None = None,
    network: Any = None,
    optimizer: Optimizer | None = None,
    collectives: Collectives = identity_collectives,
    around_network: Callable[[Network], Network] = lambda network: network,
) -> Trainer:
    """Make the trainer that a configuration describes.

    Args:
      config: the run; its totals are divided over ``collectives.size`` devices.
      environment: your own, instead of ``config.env``.
      network: your own flax module (``obs[B, O] -> q[B, A]``) or ``Network``,
        instead of ``config.network``.
      optimizer: your own, ``hyper -> optax.GradientTransformation``, instead of
        ``config.optimizer``, clipping and schedule. Where there are peers it is given
        the mean of their gradients, compressed if the configuration says so.
      collectives: how a replica speaks to its peers.
      around_network: applied to the network, ours or yours, as ``split_network`` is.

    Raises:
      ValueError: naming the field, its value and what would be right.
    """
    if collectives.size != config.replicas:
        raise ValueError(
            f"devices={config.devices}: must make {collectives.size} replicas, one for each of the "
            f"peers in collectives, not {config.replicas}; across_devices takes a trainer with "
            f"collectives=device_collectives({config.replicas}), and jaxdqn.run.run does all of it"
        )
    if optimizer is not None:
        optimizer = average_first(optimizer, config, collectives)
    environment = environment or envs.make(config.env)
    agent = make_agent(
        around_network(make_network(config, environment.spec, network)),
        optimizer or make_optimizer(config, collectives),
        double=config.double,
        loss=config.loss,
        bootstrap="none" if config.algorithm == "pqn" else config.bootstrap,
        exploration=config.exploration,
        accumulate=config.accumulate,
        target_period=config.target_period,
        polyak=config.target_tau is not None,
        sequences=None if config.recurrent == "none" else sequences_of(config),
        rescale=config.rescale_values,
    )
    learning = _learning_of(config)(config, agent, collectives)
    example = example_row(environment, extras_of(config, agent))
    act = make_act(config, environment, agent, collectives)
    learn = make_learn(config, learning, collectives)
    acting_keys = (config.rollout_length, 1 + config.envs_per_device)

    def begin(key: Array, hyper: Hyper | None = None) -> tuple[TrainState, Array]:
        hyper = hyper_from(config) if hyper is None else hyper
        key_agent, key_device = jax.random.split(key)
        key_device = jax.random.fold_in(key_device, collectives.index())
        key_envs, key_warmup, key_run = jax.random.split(key_device, 3)
        actor = reset_actor(key_envs, environment, agent, config)
        state = TrainState(
            key=key_run,
            hyper=hyper,
            agent=agent.init(key_agent, observed(actor.frames, actor.timestep.obs), hyper=hyper),
            replay=learning.init(example),
            actor=actor,
            counters=Counters(make_counter(), make_counter(), make_counter()),
        )
        return state, key_warmup

    def warm_up(state: TrainState, key: Array) -> TrainState:
        if config.warmup_iterations == 0:
            return state
        keys = jax.random.split(key, (config.warmup_iterations, *acting_keys))
        state, metrics = jax.lax.scan(lambda state, keys: act_and_add(keys, state)[:2], state, keys)
        return settle(state, reduce_metrics(metrics))[0]

    def init(key: Array, hyper: Hyper | None = None) -> TrainState:
        return warm_up(*begin(key, hyper))

    def preload(key: Array, rows: Row, hyper: Hyper | None = None) -> TrainState:
        state, key_warmup = begin(key, hyper)
        replayed, _ = jax.lax.scan(
            lambda replayed, rows: (learning.remember(replayed, rows), None), state.replay, rows
        )
        return warm_up(state._replace(replay=replayed), key_warmup)

    def refill(state: TrainState) -> TrainState:
        key, key_warmup = jax.random.split(state.key)
        empty = learning.init(example)
        return warm_up(state._replace(key=key, replay=empty), key_warmup)

    def act_and_add(keys: Array, state: TrainState) -> tuple[TrainState, Metrics, Row]:
        rows, actor, metrics = act(keys, state)
        acted = counter_add(state.counters.rows, jnp.int32(config.rows_per_iteration))
        state = state._replace(
            replay=learning.remember(state.replay, rows),
            actor=actor,
            counters=state.counters._replace(rows=acted),
        )
        return state, metrics, rows

    def iterate(state: TrainState) -> tuple[TrainState, Metrics]:
        # All keys of the iteration at once: on CPU every random call is a loop of its own,
        # whatever the number of its results.
        num_act = math.prod(acting_keys)
        keys = jax.random.split(state.key, 1 + num_act + learning.num_keys)
        keys_act = keys[1 : 1 + num_act].reshape(acting_keys)
        state, metrics, rows = act_and_add(keys_act, state._replace(key=keys[0]))
        state, learned = learn(keys[1 + num_act :], state, rows)
        taken = jnp.int32(config.gradient_steps_per_iteration)
        counters = state.counters._replace(
            gradient_steps=counter_add(state.counters.gradient_steps, taken)
        )
        return state._replace(counters=counters), metrics._replace(gradient_steps=taken, **learned)

    def settle(state: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
        """Count over all devices what each has counted for itself."""
        metrics = over_devices(metrics, collectives)
        env_steps = counter_add(state.counters.env_steps, metrics.env_steps)
        return state._replace(counters=state.counters._replace(env_steps=env_steps)), metrics

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        return settle(*iterate(state))

    def group(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        """Iterate until the parameters are averaged, and average them."""
        state, metrics = jax.lax.scan(
            lambda state, _: iterate(state), state, None, length=config.iterations_per_average
        )
        learner, gap = average(state.agent)
        metrics = reduce_metrics(metrics)._replace(averagings=jnp.int32(1), gap_sum=gap)
        return state._replace(agent=learner), metrics

    def chunk(iterations: int) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        grouped = config.iterations_per_average
        if iterations < 1 or iterations % grouped:
            raise ValueError(f"iterations={iterations}: must be a multiple of {grouped}")
        body = group if grouped > 1 else (lambda state, _: iterate(state))

        def run(state: TrainState) -> tuple[TrainState, Metrics]:
            state, metrics = jax.lax.scan(body, state, None, length=iterations // grouped)
            lost = ~all_finite(state.agent.params)
            return settle(state, reduce_metrics(metrics)._replace(lost=lost.astype(jnp.int32)))

        return run

    average = make_average(config, collectives)
    return Trainer(
        init=init,
        step=step,
        agent=agent,
        environment=environment,
        refill=refill,
        preload=preload,
        chunk=chunk,
        replicas=collectives.size,
    )


def example_row(environment: Environment, extras: PyTree = ()) -> Row:
    """Return a row of zeros of the environment's shapes, as ``Replay.init`` takes it."""
    no = jnp.bool_(False)
    obs = jnp.zeros(environment.spec.obs_shape, environment.spec.obs_dtype)
    return Row(obs, no, jnp.int32(0), jnp.float32(0), no, no, extras)


def extras_of(config: Config, agent: Agent) -> PyTree:
    """Return what rows have besides, of one environment: the carry that they were acted on with."""
    if config.recurrent == "none":
        return ()
    return jax.tree.map(lambda leaf: leaf[0], agent.initial_carry(1))


def _learning_of(config: Config) -> Callable[[Config, Agent, Collectives], Learning]:
    if config.algorithm == "pqn":
        return make_pqn
    return make_learning if config.recurrent == "none" else make_sequence_learning


def train(config: Config, **parts: Any) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make the whole run, a pure function ``(key, hyper=defaults) -> (TrainState, Metrics)``.

    Jit it; vmap it over keys (and ``hyper``) to train many at once. The metrics'
    leaves are [chunks]. ``parts`` are the keyword arguments of ``make_trainer``.

    Raises:
      ValueError: naming the field, its value and what would be right; it is the run
        of one learner, and asks to be mapped where there are more.
    """
    for name, alone in (("num_seeds", 1), ("sweep", ())):
        value = getattr(config, name)
        if value != alone:
            raise ValueError(
                f"{name}={value!r}: must be {alone!r}, for this trains one learner; vmap it over "
                "keys and hyper-parameters, or take population or jaxdqn.run.run"
            )
    trainer = make_trainer(config, **parts)
    chunk = trainer.chunk(config.iterations_per_chunk)

    def run(key: Array, hyper: Hyper | None = None) -> tuple[TrainState, Metrics]:
        state = trainer.init(key, hyper)
        return jax.lax.scan(lambda state, _: chunk(state), state, None, length=config.num_chunks)

    return run
