"""What the benchmarks time: learning iterations, their parts, and acting alone.

Every piece runs in a jitted ``lax.scan`` with its state donated, as in a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.timing import Case, compile_apart
from jaxdqn.communication.collectives import identity_collectives
from jaxdqn.config.config import Config, replace
from jaxdqn.envs.frame_stack import observed
from jaxdqn.networks import make_network
from jaxdqn.training import trainer as training
from jaxdqn.training.acting import make_act
from jaxdqn.training.dqn import make_replay
from jaxdqn.types import Array, Exploration, LearnInfo, PyTree, Replay, Row, Trainer, TrainState


class Prepared(NamedTuple):
    """A compiled scan, ready to time."""

    case: Case
    """Its work is counted in iterations (vector steps where nothing is learned)."""
    compile_seconds: float


class Part(NamedTuple):
    """A part of an iteration, repeated on its own.

    A value that the loop does not change would be computed once before it, and
    one that nobody reads not at all. So inputs are made to depend on the carry
    (``_varied``), and results are carried out of the loop.
    """

    per_iteration: int
    keys: tuple[int, ...]
    """Shape of the keys that one repetition takes."""
    fixed: PyTree
    carry: PyTree
    body: Callable[[Array, PyTree, PyTree], PyTree]
    """``body(keys, fixed, carry) -> carry``"""


def sized(
    env: str,
    *,
    num_envs: int,
    rollout_length: int = 1,
    gradient_steps: int = 1,
    batch_size: int = 128,
    **more: Any,
) -> Config:
    """Return a configuration of these sizes whose other fields fit them.

    The ring has some 32 thousand rows unless ``replay_capacity`` is given.
    """
    per_add = num_envs * rollout_length
    capacity = max(32_768 // per_add, 16) * per_add
    warmup = max(1_024, batch_size, 2 * num_envs * more.get("n_step", 1))
    fields = {"replay_capacity": capacity, "warmup_rows": warmup, **more}
    fields.setdefault("total_rows", 100 * fields["replay_capacity"] + 2 * fields["warmup_rows"])
    return replace(
        Config(),
        env=env,
        num_envs=num_envs,
        rollout_length=rollout_length,
        gradient_steps=gradient_steps,
        batch_size=batch_size,
        **fields,
    )


def prepare_learning(config: Config, iterations: int) -> Prepared:
    """Compile chunks of ``iterations`` learning iterations, warm-up done before."""
    trainer = training.make_trainer(config)
    key = jax.random.key(config.seed)
    init, init_seconds = compile_apart(trainer.init, key)
    state = init(key)
    chunk = trainer.chunk(iterations)
    compiled, chunk_seconds = compile_apart(chunk, state, donate=(0,))
    return Prepared(Case(carried(compiled, state), iterations), init_seconds + chunk_seconds)


def prepare_acting(config: Config, iterations: int) -> Prepared:
    """Compile the acting half of ``iterations`` iterations: act, environment, ring."""
    trainer = training.make_trainer(config)
    replay = make_replay(config)
    act = make_act(config, trainer.environment, trainer.agent, identity_collectives)
    state = jax.jit(trainer.init)(jax.random.key(config.seed))

    def iteration(state: TrainState, _: None) -> tuple[TrainState, Array]:
        keys = jax.random.split(state.key, 1 + config.rollout_length * (1 + config.num_envs))
        keys_act = keys[1:].reshape(config.rollout_length, 1 + config.num_envs)
        rows, actor, metrics = act(keys_act, state)
        replayed = replay.add(state.replay, rows)
        return state._replace(key=keys[0], actor=actor, replay=replayed), metrics.return_sum

    def run(state: TrainState) -> tuple[TrainState, Array]:
        state, returns = jax.lax.scan(iteration, state, None, length=iterations)
        return state, jnp.sum(returns)

    compiled, seconds = compile_apart(run, state, donate=(0,))
    return Prepared(Case(carried(compiled, state), iterations * config.rollout_length), seconds)


def prepare_bare_acting(config: Config, vector_steps: int) -> Prepared:
    """Compile environment and greedy forward pass alone: nothing explored, counted or stored."""
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
    compiled, seconds = compile_apart(run, carry, donate=(0,))
    return Prepared(Case(carried(compiled, carry), vector_steps), seconds)


def prepare_parts(config: Config, repetitions: int) -> dict[str, tuple[Prepared, int]]:
    """Compile each part of an iteration alone; with each, how often an iteration has it.

    The parts are ``keys`` (all of an iteration's), ``environment``, ``act``,
    ``add``, ``sample`` and ``learn``. Alone they cannot be fused with each
    other, so they need not add up to an iteration.
    """
    trainer, replay = training.make_trainer(config), make_replay(config)
    state = jax.jit(trainer.init)(jax.random.key(config.seed))
    prepared = {}
    for name, part in _parts(config, trainer, replay, state).items():
        # Each part donates its carry, which may hold what another one reads.
        prepared[name] = (_prepare_part(part, repetitions), part.per_iteration)
    return prepared


def carried(compiled: Callable[[Any], tuple[Any, Any]], state: Any) -> Callable[[], Any]:
    """Return a call that goes on from where the last one left the (donated) state."""
    held = [state]

    def run() -> tuple[Any, Any]:
        held[0], out = compiled(held[0])
        return held[0], out

    return run


def _prepare_part(part: Part, repetitions: int) -> Prepared:
    def run(carry: PyTree, fixed: PyTree, keys: Array) -> tuple[PyTree, None]:
        return jax.lax.scan(lambda carry, key: (part.body(key, fixed, carry), None), carry, keys)

    carry = jax.tree.map(jnp.copy, part.carry)
    keys = jax.random.split(jax.random.key(0), (repetitions, *part.keys))
    compiled, seconds = compile_apart(run, carry, part.fixed, keys, donate=(0,))
    call = carried(lambda carry: compiled(carry, part.fixed, keys), carry)
    return Prepared(Case(call, repetitions), seconds)


def _varied(flag: Array, tree: PyTree) -> PyTree:
    """Return ``tree``, unless ``flag`` []: it never is, which the compiler cannot know."""
    return jax.tree.map(lambda leaf: jnp.where(flag, jnp.zeros_like(leaf), leaf), tree)


def _zeros_of(body: Callable[..., PyTree], *args: Any) -> PyTree:
    """Return zeros of the shapes that ``body`` gives."""
    shapes = jax.eval_shape(body, *args)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _parts(config: Config, trainer: Trainer, replay: Replay, state: TrainState) -> dict[str, Part]:
    vector_steps, gradient_steps = config.rollout_length, config.gradient_steps_per_iteration
    environment, agent, actor = trainer.environment, trainer.agent, state.actor
    num_actions, num_envs = environment.spec.num_actions, config.num_envs
    num_keys = 1 + vector_steps * (1 + num_envs) + 2 * gradient_steps
    actions = jnp.arange(num_envs, dtype=jnp.int32) % num_actions
    gamma = state.hyper.gamma
    batch, drawn = jax.jit(replay.sample)(jax.random.key(0), state.replay, gamma)
    explore = Exploration(jnp.full((num_envs,), config.epsilon_end), state.hyper.temperature)

    def split(_: Array, fixed: PyTree, keys: Array) -> Array:
        return jax.random.split(keys[0], num_keys)

    def step_environments(keys: Array, fixed: PyTree, carry: PyTree) -> PyTree:
        env_state, _, actions = carry
        env_state, timestep = jax.vmap(environment.step)(keys, env_state, actions)
        return env_state, timestep, (actions + 1) % num_actions

    def act(key: Array, fixed: PyTree, carry: PyTree) -> PyTree:
        params, obs, first = fixed
        before, actions, _ = carry
        obs = _varied(actions[0] < 0, obs)
        actions, after, info = agent.act(key, params, before, obs, first, explore)
        return after, actions, info

    def add(_: Array, rows: Row, replayed: PyTree) -> PyTree:
        return replay.add(replayed, _varied(replayed.position < 0, rows))

    def sample(key: Array, replayed: PyTree, _: PyTree) -> PyTree:
        return replay.sample(key, replayed, gamma)

    def learn(key: Array, fixed: PyTree, carry: PyTree) -> PyTree:
        learner, info = carry
        batch = _varied(info.loss < 0, fixed)
        weights = jnp.ones_like(drawn.probabilities)
        return agent.learn(key, learner, batch, weights, hyper=state.hyper)

    timestep = actor.timestep
    row = Row(action=actions, **timestep._asdict())
    rows = jax.tree.map(lambda leaf: jnp.stack([leaf] * vector_steps), row)
    seen = (state.agent.params, observed(actor.frames, timestep.obs), timestep.first)
    acted = _zeros_of(act, state.key, seen, (actor.carry, actions, ()))
    info = _zeros_of(learn, state.key, batch, (state.agent, LearnInfo(*[jnp.float32(0)] * 4)))[1]
    keys = jax.random.split(state.key, num_keys)
    return {
        "keys": Part(1, (), (), keys, split),
        "environment": Part(
            vector_steps, (num_envs,), (), (actor.env_state, timestep, actions), step_environments
        ),
        "act": Part(vector_steps, (), seen, acted, act),
        "add": Part(1, (), rows, state.replay, add),
        "sample": Part(gradient_steps, (), state.replay, (batch, drawn), sample),
        "learn": Part(gradient_steps, (), batch, (state.agent, info), learn),
    }


def prepare_trainer(trainer: Trainer, config: Config, iterations: int) -> Prepared:
    """Compile the iterations of a mapped trainer; the work is counted in gradient steps."""
    import jax
    from jaxdqn.programs import learner_keys
    from jaxdqn.trainer import learner_hypers

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


CARTPOLE = "CartPole-v1"


BREAKOUT = "Breakout-MinAtar"


def matched(env: str = CARTPOLE, **more: Any) -> Config:
    """Return E=10, K=1, M=1, B=128, with an MLP of 120 and 84 units on vectors."""
    fields = {"num_envs": 10, "hidden_sizes": (120, 84), **more}
    return sized(env, **fields)
