"""Compiled programs that the benchmarks time: learning iterations, their parts, and acting.

Each program is a jitted ``lax.scan`` with its state donated, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.timing import Case, compile_timed
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.frame_stack import observed
from jaxdqn.networks import make_network
from jaxdqn.parallel.learners import learner_hypers, learner_keys
from jaxdqn.training import trainer as training
from jaxdqn.training.acting import make_act
from jaxdqn.training.algorithms import make_learning
from jaxdqn.training.dqn import make_replay
from jaxdqn.training.learner import make_learner
from jaxdqn.types import Array, Exploration, LearnInfo, PyTree, Replay, Row, Trainer, TrainState


class Prepared(NamedTuple):
    """Compiled scan, ready to time."""

    case: Case
    """Work is counted in iterations, vector steps without learning, repetitions of a part, or
    gradient steps (``prepare_trainer``)."""
    compile_seconds: float
    compiled: Any = None
    """The compiled program."""


class Part(NamedTuple):
    """Part of an iteration, repeated in a separate loop.

    XLA would hoist a computation that is the same in every repetition, and remove a computation
    whose result is unused. Inputs therefore depend on the carry (``varied``), and results are part
    of the carry.
    """

    per_iteration: int
    """Repetitions in one iteration."""
    keys: tuple[int, ...]
    """Shape of the keys of one repetition."""
    fixed: PyTree
    """Inputs shared by all repetitions."""
    carry: PyTree
    body: Callable[[Array, PyTree, PyTree], PyTree]
    """``body(keys, fixed, carry) -> carry``"""


def prepare_learning(config: Config, iterations: int, **parts: Any) -> Prepared:
    """Compile chunks of ``iterations`` learning iterations; the warm-up runs here.

    ``parts`` are keyword arguments of ``make_trainer``.
    """
    trainer = training.make_trainer(config, **parts)
    key = jax.random.key(config.seed)
    init, init_seconds = compile_timed(trainer.init, key)
    state = init(key)
    chunk = trainer.chunk(iterations)
    compiled, chunk_seconds = compile_timed(chunk, state, donate=(0,))
    case = Case(carried(compiled, state), iterations)
    return Prepared(case, init_seconds + chunk_seconds, compiled)


def prepare_acting(config: Config, iterations: int) -> Prepared:
    """Compile the acting half of ``iterations`` iterations: act, environment, replay."""
    trainer = training.make_trainer(config)
    learning = make_learning(config, trainer.agent, identity_collectives)
    spec = trainer.environment.spec
    learner = make_learner(config, spec, trainer.agent, learning, identity_collectives)
    act = make_act(config, trainer.environment, learner)
    state = jax.jit(trainer.init)(jax.random.key(config.seed))

    def iteration(state: TrainState, _: None) -> tuple[TrainState, Array]:
        keys = jax.random.split(state.key, 1 + config.rollout_length * (1 + config.num_envs))
        keys_act = keys[1:].reshape(config.rollout_length, 1 + config.num_envs)
        rows, actor, metrics = act(keys_act, state)
        replayed = learning.remember(state.replay, rows)
        return state._replace(key=keys[0], actor=actor, replay=replayed), metrics.return_sum

    def run(state: TrainState) -> tuple[TrainState, Array]:
        state, returns = jax.lax.scan(iteration, state, None, length=iterations)
        return state, jnp.sum(returns)

    compiled, seconds = compile_timed(run, state, donate=(0,))
    return Prepared(Case(carried(compiled, state), iterations * config.rollout_length), seconds)


def prepare_bare_acting(config: Config, vector_steps: int) -> Prepared:
    """Compile environment and greedy forward pass only: no exploration, counters or replay."""
    trainer = training.make_trainer(config)
    network = make_network(config, trainer.environment.spec)
    state = jax.jit(trainer.init)(jax.random.key(config.seed))

    def vector_step(carry: PyTree, _: None) -> tuple[PyTree, None]:
        key, params, env_state, before = carry
        keys = jax.random.split(key, 2 + config.num_envs)
        output, _ = network.apply(params, keys[1], (), before.obs, before.first)
        actions = jnp.argmax(output.q_values, axis=1).astype(jnp.int32)
        env_state, after = jax.vmap(trainer.environment.step)(keys[2:], env_state, actions)
        return (keys[0], params, env_state, after), None

    def run(carry: PyTree) -> tuple[PyTree, None]:
        return jax.lax.scan(vector_step, carry, None, length=vector_steps)

    carry = (state.key, state.agent.params, state.actor.env_state, state.actor.timestep)
    compiled, seconds = compile_timed(run, carry, donate=(0,))
    return Prepared(Case(carried(compiled, carry), vector_steps), seconds)


def prepare_parts(config: Config, repetitions: int) -> dict[str, tuple[Prepared, int]]:
    """Compile each part of an iteration separately.

    The parts are ``keys`` (all keys of an iteration), ``environment``, ``act``, ``add``, ``sample``
    and ``learn``. XLA cannot fuse separate programs, so the parts need not add up to an iteration.

    Returns:
        Each part, with its number of repetitions in one iteration.
    """
    trainer, replay = training.make_trainer(config), make_replay(config)
    state = jax.jit(trainer.init)(jax.random.key(config.seed))
    prepared = {}
    for name, part in _parts(config, trainer, replay, state).items():
        # prepare_part copies the carry, because a part donates it and others may read its leaves.
        prepared[name] = (prepare_part(part, repetitions), part.per_iteration)
    return prepared


def carried(compiled: Callable[[Any], tuple[Any, Any]], state: Any) -> Callable[[], Any]:
    """Return a call that continues from the state of the previous call, which is donated."""
    current = [state]

    def run() -> tuple[Any, Any]:
        current[0], out = compiled(current[0])
        return current[0], out

    return run


def prepare_part(part: Part, repetitions: int) -> Prepared:
    """Compile repetitions of a part."""

    def run(carry: PyTree, fixed: PyTree, keys: Array) -> tuple[PyTree, None]:
        return jax.lax.scan(lambda carry, key: (part.body(key, fixed, carry), None), carry, keys)

    carry = jax.tree.map(jnp.copy, part.carry)
    keys = jax.random.split(jax.random.key(0), (repetitions, *part.keys))
    compiled, seconds = compile_timed(run, carry, part.fixed, keys, donate=(0,))
    call = carried(lambda carry: compiled(carry, part.fixed, keys), carry)
    return Prepared(Case(call, repetitions), seconds, compiled)


def varied(flag: Array, tree: PyTree) -> PyTree:
    """Return ``tree``, or zeros if ``flag`` [] is true.

    The flag is always false, but the compiler cannot know that.
    """
    return jax.tree.map(lambda leaf: jnp.where(flag, jnp.zeros_like(leaf), leaf), tree)


def zeros_of(body: Callable[..., PyTree], *args: Any) -> PyTree:
    """Return zeros of the shapes and dtypes that ``body`` returns."""
    shapes = jax.eval_shape(body, *args)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _parts(config: Config, trainer: Trainer, replay: Replay, state: TrainState) -> dict[str, Part]:
    num_keys = config.rollout_length * (1 + config.num_envs)
    num_keys += 1 + 2 * config.gradient_steps_per_iteration

    def split(_: Array, fixed: PyTree, keys: Array) -> Array:
        return jax.random.split(keys[0], num_keys)

    return {
        "keys": Part(1, (), (), jax.random.split(state.key, num_keys), split),
        **_acting_parts(config, trainer, replay, state),
        **learning_parts(config, trainer, replay, state),
    }


def _acting_parts(
    config: Config, trainer: Trainer, replay: Replay, state: TrainState
) -> dict[str, Part]:
    vector_steps, num_envs = config.rollout_length, config.num_envs
    environment, actor = trainer.environment, state.actor
    num_actions, timestep = environment.spec.num_actions, actor.timestep

    def step_environments(keys: Array, fixed: PyTree, carry: PyTree) -> PyTree:
        env_state, _, actions = carry
        env_state, timestep = jax.vmap(environment.step)(keys, env_state, actions)
        return env_state, timestep, (actions + 1) % num_actions

    def add(_: Array, rows: Row, replay_state: PyTree) -> PyTree:
        return replay.add(replay_state, varied(replay_state.position < 0, rows))

    actions = jnp.arange(num_envs, dtype=jnp.int32) % num_actions
    row = Row(action=actions, **timestep._asdict())
    rows = jax.tree.map(lambda leaf: jnp.stack([leaf] * vector_steps), row)
    env_carry = (actor.env_state, timestep, actions)
    return {
        "environment": Part(vector_steps, (num_envs,), (), env_carry, step_environments),
        "act": act_part(config, trainer, state),
        "add": Part(1, (), rows, state.replay, add),
    }


def act_part(config: Config, trainer: Trainer, state: TrainState) -> Part:
    """Return the part that chooses the actions of a vector step."""
    num_envs, agent, actor = config.num_envs, trainer.agent, state.actor
    explore = Exploration(jnp.full((num_envs,), config.epsilon_end), state.hyper.temperature)

    def act(key: Array, fixed: PyTree, carry: PyTree) -> PyTree:
        params, obs, first = fixed
        before, actions, _ = carry
        obs = varied(actions[0] < 0, obs)
        actions, after, info = agent.act(key, params, before, obs, first, explore)
        return after, actions, info

    actions = jnp.arange(num_envs, dtype=jnp.int32) % trainer.environment.spec.num_actions
    obs = observed(actor.frames, actor.timestep.obs)
    inputs = (state.agent.params, obs, actor.timestep.first)
    acted = zeros_of(act, state.key, inputs, (actor.carry, actions, ()))
    return Part(config.rollout_length, (), inputs, acted, act)


def learning_parts(
    config: Config, trainer: Trainer, replay: Replay, state: TrainState
) -> dict[str, Part]:
    """Return the parts that draw a batch and take a gradient step on it."""
    gradient_steps, gamma = config.gradient_steps_per_iteration, state.hyper.gamma
    batch, drawn = jax.jit(replay.sample)(jax.random.key(0), state.replay, gamma)

    def sample(key: Array, replay_state: PyTree, _: PyTree) -> PyTree:
        return replay.sample(key, replay_state, gamma)

    def learn(key: Array, fixed: PyTree, carry: PyTree) -> PyTree:
        agent_state, info = carry
        batch = varied(info.loss < 0, fixed)
        weights = jnp.ones_like(drawn.probabilities)
        return trainer.agent.learn(key, agent_state, batch, weights, hyper=state.hyper)

    zeros = LearnInfo(*[jnp.float32(0)] * 4)
    info = zeros_of(learn, state.key, batch, (state.agent, zeros))[1]
    return {
        "sample": Part(gradient_steps, (), state.replay, (batch, drawn), sample),
        "learn": Part(gradient_steps, (), batch, (state.agent, info), learn),
    }


def prepare_trainer(trainer: Trainer, config: Config, iterations: int) -> Prepared:
    """Compile iterations of any trainer; work is counted in gradient steps of all learners."""
    keys, hyper = learner_keys(config).train, learner_hypers(config)
    start = time.perf_counter()
    shape = jax.eval_shape(trainer.init, keys, hyper)
    layout = None if trainer.sharding is None else trainer.sharding(shape)
    init = jax.jit(trainer.init, out_shardings=layout).lower(keys, hyper).compile()
    seconds = time.perf_counter() - start
    state = init(keys, hyper)
    start = time.perf_counter()
    chunk = jax.jit(trainer.chunk(iterations), donate_argnums=0, out_shardings=(layout, None))
    compiled = chunk.lower(state).compile()
    seconds += time.perf_counter() - start
    steps = iterations * config.gradient_steps_per_iteration * config.learners
    return Prepared(Case(carried(compiled, state), steps), seconds)
