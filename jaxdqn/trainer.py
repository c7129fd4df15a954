"""The per-device step: act, remember, learn; and what is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn import envs
from jaxdqn.acting import make_act, over_devices, reduce_metrics, reset_actor
from jaxdqn.agent import Optimizer, make_agent
from jaxdqn.averaging import make_average
from jaxdqn.config import Config
from jaxdqn.envs.frames import observed
from jaxdqn.guard import all_finite, keep_finite
from jaxdqn.networks import make_network
from jaxdqn.optim import average_first, make_optimizer
from jaxdqn.replay import importance_weights, make_prioritized, make_uniform
from jaxdqn.types import (
    ALONE,
    Agent,
    Array,
    Collectives,
    Counters,
    Environment,
    Hyper,
    LearnInfo,
    Metrics,
    Replay,
    Row,
    SampleInfo,
    Trainer,
    TrainState,
    counter_add,
    counter_float,
    make_counter,
)

_DISABLED = math.inf
_PRIORITY_OFFSET = 1e-6
"""Epsilon of Schaul et al. 2016, section 3.3: no row is left out for an error of zero."""


def hyper_from(config: Config) -> Hyper:
    """Return the configuration's sweepable scalars, as float32 arrays."""

    def scalar(value: float | None) -> Array:
        return jnp.float32(_DISABLED if value is None else value)

    return Hyper(
        learning_rate=scalar(config.learning_rate),
        gamma=scalar(config.gamma),
        epsilon_start=scalar(config.epsilon_start),
        epsilon_end=scalar(config.epsilon_end),
        temperature=scalar(config.temperature),
        huber_delta=scalar(config.huber_delta),
        clip_value=scalar(config.clip_value),
        clip_norm=scalar(config.clip_norm),
        target_tau=scalar(config.target_tau),
        priority_exponent=scalar(config.priority_exponent),
        importance_exponent=scalar(config.importance_exponent),
    )


def learner_hypers(config: Config) -> Hyper | None:
    """Return the hyper-parameters of each learner of a population: leaves [P].

    The seeds of a combination of the sweep stand together. None for one learner.
    """
    if config.learners == 1:
        return None
    shared = hyper_from(config)
    each = [
        shared._replace(**{name: jnp.float32(value) for name, value in point.items()})
        for point in config.sweep_points
        for _ in range(config.num_seeds)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def make_trainer(
    config: Config,
    *,
    environment: Environment | None = None,
    network: Any = None,
    optimizer: Optimizer | None = None,
    collectives: Collectives = ALONE,
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
        make_network(config, environment.spec, network),
        optimizer or make_optimizer(config, collectives),
        double=config.double,
        loss=config.loss,
        exploration=config.exploration,
        accumulate=config.accumulate,
        target_period=config.target_period,
        polyak=config.target_tau is not None,
    )
    replay = make_replay(config)
    act = make_act(config, environment, agent, collectives)
    learn = _make_learning(config, agent, replay, collectives)
    acting_keys = (config.rollout_length, 1 + config.envs_per_device)
    learning_keys = (config.gradient_steps_per_iteration, 2)

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
            replay=replay.init(example_row(environment)),
            actor=actor,
            counters=Counters(make_counter(), make_counter(), make_counter()),
        )
        return state, key_warmup

    def warm_up(state: TrainState, key: Array) -> TrainState:
        keys = jax.random.split(key, (config.warmup_iterations, *acting_keys))
        state, metrics = jax.lax.scan(lambda state, keys: act_and_add(keys, state), state, keys)
        return settle(state, reduce_metrics(metrics))[0]

    def init(key: Array, hyper: Hyper | None = None) -> TrainState:
        return warm_up(*begin(key, hyper))

    def preload(key: Array, rows: Row, hyper: Hyper | None = None) -> TrainState:
        state, key_warmup = begin(key, hyper)
        replayed, _ = jax.lax.scan(
            lambda replayed, rows: (replay.add(replayed, rows), None), state.replay, rows
        )
        return warm_up(state._replace(replay=replayed), key_warmup)

    def refill(state: TrainState) -> TrainState:
        key, key_warmup = jax.random.split(state.key)
        empty = replay.init(example_row(environment))
        return warm_up(state._replace(key=key, replay=empty), key_warmup)

    def act_and_add(keys: Array, state: TrainState) -> tuple[TrainState, Metrics]:
        rows, actor, metrics = act(keys, state)
        acted = counter_add(state.counters.rows, jnp.int32(config.rows_per_iteration))
        state = state._replace(
            replay=replay.add(state.replay, rows),
            actor=actor,
            counters=state.counters._replace(rows=acted),
        )
        return state, metrics

    def iterate(state: TrainState) -> tuple[TrainState, Metrics]:
        # All keys of the iteration at once: on CPU every random call is a loop of its own,
        # whatever the number of its results.
        num_act, num_learn = math.prod(acting_keys), math.prod(learning_keys)
        keys = jax.random.split(state.key, 1 + num_act + num_learn)
        keys_act = keys[1 : 1 + num_act].reshape(acting_keys)
        keys_learn = keys[1 + num_act :].reshape(learning_keys)
        state, metrics = act_and_add(keys_act, state._replace(key=keys[0]))
        state, learned = learn(keys_learn, state)
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


def make_replay(config: Config) -> Replay:
    """Make the replay of one device that a configuration describes."""
    make = make_prioritized if config.replay == "prioritized" else make_uniform
    return make(
        num_envs=config.envs_per_device,
        rows_per_env=config.replay_rows,
        rows_per_add=config.rollout_length,
        batch_size=config.batch_per_device * config.accumulate,
        n_step=config.n_step,
        frame_stack=config.frame_stack,
    )


def example_row(environment: Environment) -> Row:
    """Return a row of zeros of the environment's shapes, as ``Replay.init`` takes it."""
    no = jnp.bool_(False)
    obs = jnp.zeros(environment.spec.obs_shape, environment.spec.obs_dtype)
    return Row(obs, no, jnp.int32(0), jnp.float32(0), no, no)


def make_chunk(
    trainer: Trainer, iterations: int
) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
    """Make a pure function that takes ``iterations`` steps and reduces their metrics.

    Jit it with the state donated, or the ring is copied on every call.

    Raises:
      ValueError: if parameters are averaged at another rhythm.
    """
    return trainer.chunk(iterations)


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
    chunk = make_chunk(trainer, config.iterations_per_chunk)

    def run(key: Array, hyper: Hyper | None = None) -> tuple[TrainState, Metrics]:
        state = trainer.init(key, hyper)
        return jax.lax.scan(lambda state, _: chunk(state), state, None, length=config.num_chunks)

    return run


def _make_learning(
    config: Config, agent: Agent, replay: Replay, collectives: Collectives
) -> Callable[[Array, TrainState], tuple[TrainState, dict[str, Array]]]:
    """Make the learning half of a step: M gradient steps with keys [M, 2].

    It gives the metrics of learning, of this device alone.
    """
    steps, every = config.gradient_steps_per_iteration, config.average_every
    learn, average = (
        _make_learn(config, agent, replay, collectives),
        make_average(config, collectives),
    )

    def many(state: TrainState, keys: Array) -> tuple[TrainState, tuple[LearnInfo, Array]]:
        return jax.lax.scan(lambda state, keys: learn(keys, state), state, keys)

    def many_and_average(state: TrainState, keys: Array) -> tuple[TrainState, Any]:
        state, learned = many(state, keys)
        learner, gap = average(state.agent)
        return state._replace(agent=learner), (learned, gap)

    def learning(keys: Array, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        averaged = {}
        if every is None or every > steps:
            state, (infos, skipped) = many(state, keys)
        else:
            groups = keys.reshape(steps // every, every, *keys.shape[1:])
            state, ((infos, skipped), gaps) = jax.lax.scan(many_and_average, state, groups)
            averaged = {"averagings": jnp.int32(steps // every), "gap_sum": jnp.sum(gaps)}
        return state, {
            "skipped": jnp.sum(skipped, dtype=jnp.int32),
            "first_skipped": jnp.argmax(skipped.ravel()).astype(jnp.int32),
            "loss": jnp.mean(infos.loss),
            "grad_norm": jnp.mean(infos.grad_norm),
            "q_mean": jnp.mean(infos.q_mean),
            **averaged,
        }

    return learning


def _make_learn(
    config: Config, agent: Agent, replay: Replay, collectives: Collectives
) -> Callable[[Array, TrainState], tuple[TrainState, tuple[LearnInfo, Array]]]:
    """Make one gradient step, with keys [2], on a batch from the replay.

    It also says ([] bool) whether the guard undid it.
    """
    # Replicas that are averaged later need not agree before.
    deciders = collectives if config.average_every is None else ALONE
    weigh = _make_weigh(config, deciders)

    def learn(keys: Array, state: TrainState) -> tuple[TrainState, tuple[LearnInfo, Array]]:
        batch, drawn = replay.sample(keys[0], state.replay, state.hyper.gamma)
        weights = weigh(state, drawn)
        learner, info = agent.learn(keys[1], state.agent, batch, weights, hyper=state.hyper)
        skipped = jnp.bool_(False)
        if config.guard != "off":
            learner, skipped = keep_finite(
                state.agent, learner, info, deciders, periodic=config.target_tau is None
            )
        replayed = replay.update(state.replay, drawn.indices, _priorities(state, info))
        # The TD errors have gone into the replay; M times B of them are not kept.
        info = info._replace(abs_td=jnp.float32(0))
        return state._replace(agent=learner, replay=replayed), (info, skipped)

    return learn


def _priorities(state: TrainState, info: LearnInfo) -> Array:
    """Return the priorities [B] that a gradient step gives its batch.

    What is not finite must not become one. That they depend on the gradient's norm has a
    second use: then everything that reads the priorities of before comes before their
    writing, and the compiler need not copy them.
    """
    sound = jnp.isfinite(info.loss) & jnp.isfinite(info.grad_norm)
    abs_td = jnp.where(sound & jnp.isfinite(info.abs_td), info.abs_td, 0.0)
    return (abs_td + _PRIORITY_OFFSET) ** state.hyper.priority_exponent


def _make_weigh(
    config: Config, collectives: Collectives
) -> Callable[[TrainState, SampleInfo], Array]:
    """Make the weights [B] of a batch's losses, by how it was drawn."""
    if config.replay == "uniform":
        return lambda state, drawn: jnp.ones_like(drawn.probabilities)

    def weigh(state: TrainState, drawn: SampleInfo) -> Array:
        done = jnp.minimum(counter_float(state.counters.rows) / config.total_steps, 1.0)
        exponent = state.hyper.importance_exponent
        exponent = exponent + (1.0 - exponent) * done
        return importance_weights(drawn.probabilities, exponent, collectives.max)

    return weigh
