"""Pure functions of a ``VectorTrainer``; its programs are compiled from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.frame_stack import push_frame
from jaxdqn.envs.vector.base import HostEnvironment, time_step
from jaxdqn.training.guard import all_finite
from jaxdqn.training.hoisting import Split, split_first
from jaxdqn.training.hyper import hyper_from
from jaxdqn.training.keys import split_named, start_keys
from jaxdqn.training.learner import Learner, episode_ends
from jaxdqn.training.metrics import (
    add_metrics,
    all_reduce_metrics,
    mean_metrics,
    reduce_metrics,
    step_episode,
)
from jaxdqn.types import (
    ActorState,
    Array,
    Counter,
    Counters,
    Hyper,
    Metrics,
    Params,
    PyTree,
    Row,
    TimeStep,
    TrainState,
    counter_add,
    counter_float,
)

MOST_ITERATIONS = 16
"""Maximum number of iterations whose keys are made by one call."""

_SEPARABLE = "threefry2x32"

MOST_BYTES = 2**24
"""Maximum size of the ``Draws`` of one call. Noisy networks may need more random numbers; these are
then generated at each vector step."""


class Acting(NamedTuple):
    """Part of the acting state on which the actions depend."""

    frames: PyTree
    """``ActorState.frames`` before the newest observation"""
    carry: PyTree
    action: Array
    """[E] int32, the last action"""
    episode: PyTree
    """``ActorState.episode`` before the newest time step. Empty if rows have no extras, because
    only extras may depend on it."""
    step: Array
    """[] int32, index of the next vector step within the key block"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draws:
    """Random numbers of acting, and other values that do not depend on observations."""

    values: list[Array]
    """Leaves [N, ...], for N vector steps: the result of ``Split.before``"""
    impl: Any = field(metadata={"static": True})
    """PRNG implementation of the keys"""


class KeyBlock(NamedTuple):
    """Keys of I = ``block_length`` iterations."""

    next: Array
    """[I], the key of the state after each iteration"""
    act: Draws
    """Leaves [I K, ...]"""
    learn: PyTree
    """``IterationKeys.learn``, leaves [I, ...]"""
    last: Array
    """[], the last of ``next``"""
    rows: Counter
    """Number of rows after the block"""


class Played(NamedTuple):
    """K vector steps in the environments."""

    timesteps: TimeStep
    """Leaves [K, E, ...], results of the actions"""
    actions: Array
    """[K, E] int32"""
    extras: tuple[PyTree, ...]
    """Tuple of K pytrees: the ``extras`` of the rows of each vector step, leaves [E, ...]"""
    carry: PyTree
    """Recurrent carry after the second-to-last observation"""


def block_length(config: Config) -> int:
    """Return I, the number of iterations whose keys are made by one call."""
    return min(MOST_ITERATIONS, config.iterations_per_chunk)


class VectorFunctions(NamedTuple):
    """Functions of one replica of a ``VectorTrainer``, which documents them.

    E is the number of environments of the replica.
    """

    config: Config
    environment: HostEnvironment
    learner: Learner
    collectives: Collectives
    extras: bool
    """True if rows have extras."""
    most_steps: int
    """Maximum number of vector steps in a call of ``draws``"""

    def init(
        self, key: Array, hyper: Hyper | None = None, timestep: TimeStep | None = None
    ) -> TrainState:
        hyper = hyper_from(self.config) if hyper is None else hyper
        keys = start_keys(key, self.collectives.index())
        if timestep is None:
            timestep = zero_time_step(self.environment, self.config.envs_per_device)
        return self.learner.init(keys.agent, keys.run, self.start(timestep), hyper)

    def start(self, timestep: TimeStep) -> ActorState:
        return self.learner.start((), timestep)

    def warm_up_keys(self, key: Array) -> Array:
        return self._agent_keys(start_keys(key, self.collectives.index()).warm_up)

    def refill_keys(self, key: Array) -> tuple[Array, Array]:
        key, key_warmup = jax.random.split(key)
        return key, self._agent_keys(key_warmup)

    def _agent_keys(self, key: Array) -> Array:
        """Return the keys of the agent in a warm-up, [blocks, I K]."""
        shape = (self.config.warmup_iterations, *self.learner.key_shapes.act)
        act = jax.random.split(key, shape)[:, :, 0].reshape(-1)
        # An environment on the host draws random numbers itself, so only the agent needs keys.
        size = block_length(self.config) * self.config.rollout_length
        blocks = -(-len(act) // size)
        index = jnp.minimum(jnp.arange(blocks * size), max(len(act) - 1, 0))
        return act[index].reshape(blocks, size)

    def block(self, blocks: Array, index: Array, hyper: Hyper, rows: Counter) -> Draws:
        return self.draws(blocks[index], hyper, rows)

    def keys(self, key: Array, hyper: Hyper, rows: Counter) -> KeyBlock:
        def split(key: Array, _: None) -> tuple[Array, Any]:
            keys = split_named(key, self.learner.key_shapes)
            return keys.next, (keys.next, keys.act[:, 0], keys.learn)

        length = block_length(self.config)
        last, (after, act, learn) = jax.lax.scan(split, key, None, length=length)
        draws = self.draws(act.reshape(-1), hyper, rows)
        rows = counter_add(rows, jnp.int32(length * self.config.rows_per_iteration))
        return KeyBlock(after, draws, learn, last, rows)

    def draws(self, keys: Array, hyper: Hyper, rows: Counter) -> Draws:
        """Compute the part of acting that does not depend on observations, for N vector steps.

        This is much faster than computing it in each vector step: see ``split_first``.

        Args:
          keys: [N], keys of the agent; N is at most ``most_steps``.
          hyper: hyper-parameters.
          rows: number of rows before the first of these vector steps.
        """
        config, impl = self.config, jax.random.key_impl(keys)
        before = self._split(impl).before
        iterations, steps = jnp.divmod(
            jnp.arange(len(keys), dtype=jnp.int32), jnp.int32(config.rollout_length)
        )

        def draw(key: Array, iteration: Array, step: Array) -> list[Array]:
            earlier = counter_add(rows, iteration * jnp.int32(config.rows_per_iteration))
            count = counter_float(earlier) + step.astype(jnp.float32) * config.num_envs
            return before((key, hyper, count))

        with jax.named_scope("act"):
            return Draws(jax.vmap(draw)(keys, iterations, steps), impl)

    def _split(self, impl: Any) -> Split:
        """Split acting into the part that does not depend on observations, and the rest."""

        def act(drawn: tuple[Array, Hyper, Array], params: Params, actor: ActorState) -> Any:
            key, hyper, count = drawn
            decision = self.learner.act(key, params, hyper, count, actor)
            return decision.carry, decision.actions, decision.extras

        key = jax.eval_shape(lambda: jax.random.key(0, impl=impl))
        state = jax.eval_shape(self.init, key)
        # Other implementations generate different bits under vmap than for one key at a time, and
        # the result would depend on the vector step at which a block starts.
        separable = str(impl) == _SEPARABLE
        return split_first(
            act,
            (key, state.hyper, jax.ShapeDtypeStruct((), jnp.float32)),
            state.agent.params,
            self._acting_state(state.actor),
            most_bytes=MOST_BYTES // self.most_steps if separable else 0,
        )

    def _acting_state(self, actor: ActorState) -> ActorState:
        """Return the part of the acting state on which actions and extras depend."""
        episode: Any = actor.episode if self.extras else ()
        return actor._replace(episode=episode)

    def begin(self, actor: ActorState, draws: Draws, params: Params) -> tuple[Acting, PyTree]:
        return self._act(self._acting_state(actor), draws, params, jnp.int32(0))

    def advance(
        self, acting: Acting, timestep: TimeStep, draws: Draws, params: Params
    ) -> tuple[Acting, PyTree]:
        frames = push_frame(acting.frames, timestep.obs, timestep.first)
        episode = acting.episode
        if self.extras:
            ends = episode_ends(self.environment.spec, timestep)
            _, episode = step_episode(episode, timestep.reward, ends, ~timestep.first)
        actor = ActorState((), timestep, frames, acting.carry, episode, acting.action)
        return self._act(actor, draws, params, acting.step)

    def _act(
        self, actor: ActorState, draws: Draws, params: Params, index: Array
    ) -> tuple[Acting, PyTree]:
        """Choose the actions of vector step ``index`` of the key block."""
        drawn = [leaf[index] for leaf in draws.values]
        with jax.named_scope("act"):
            carry, actions, extras = self._split(draws.impl).after(drawn, params, actor)
        return Acting(actor.frames, carry, actions, actor.episode, index + 1), extras

    def remember(self, state: TrainState, played: Played) -> TrainState:
        actor, rows, metrics = self._rows(state, played)
        state = self.learner.remember(state, rows, actor)
        return _count_env_steps(state, all_reduce_metrics(metrics, self.collectives))

    def empty_replay(self, state: TrainState) -> TrainState:
        return state._replace(replay=self.learner.empty_replay(state.agent, state.actor))

    def learn(
        self, state: TrainState, total: Metrics, index: Array, keys: KeyBlock, played: Played
    ) -> tuple[TrainState, Metrics, Params]:
        of_iteration = jax.tree.map(lambda leaf: leaf[index], keys.learn)
        state = state._replace(key=keys.next[index])
        state, metrics = self._learn(state, of_iteration, played)
        total = add_metrics(total, metrics)
        return state, total, jax.tree.map(jnp.copy, state.agent.params)

    def _learn(self, state: TrainState, keys: PyTree, played: Played) -> tuple[TrainState, Metrics]:
        actor, rows, metrics = self._rows(state, played)
        state = self.learner.remember(state, rows, actor)
        return self.learner.learn(keys, state, rows, metrics)

    def _rows(self, state: TrainState, played: Played) -> tuple[ActorState, Row, Metrics]:
        """Return the acting state after an iteration, its rows [K, E] and its metrics."""
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

    def begin_chunk(self, state: TrainState) -> tuple[Array, Hyper, Counter, Params, Metrics]:
        length, actor, params = self.config.rollout_length, state.actor, state.agent.params
        hyper, count = state.hyper, state.counters.rows
        draws = jax.eval_shape(
            lambda key: self.draws(jax.random.split(key, length), hyper, count), state.key
        )
        acting, extras = jax.eval_shape(self.begin, actor, draws, params)
        played = played_shape(length, actor.timestep, acting, extras)

        def metrics_of(state: TrainState, played: Played) -> Metrics:
            keys = split_named(state.key, self.learner.key_shapes)
            return self._learn(state, keys.learn, played)[1]

        shapes = jax.eval_shape(metrics_of, state, played)
        total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        copies = jax.tree.map(jnp.copy, (state.key, hyper, count, params))
        return *copies, total

    def summarize(
        self, state: TrainState, total: Metrics, iterations: Array
    ) -> tuple[TrainState, Metrics, Counters]:
        lost = ~all_finite(state.agent.params)
        metrics = mean_metrics(total, iterations)._replace(lost=lost.astype(jnp.int32))
        metrics = all_reduce_metrics(metrics, self.collectives)
        state = _count_env_steps(state, metrics)
        return state, metrics, state.counters


def _count_env_steps(state: TrainState, metrics: Metrics) -> TrainState:
    env_steps = counter_add(state.counters.env_steps, metrics.env_steps)
    return state._replace(counters=state.counters._replace(env_steps=env_steps))


def played_shape(
    length: int, timestep: TimeStep, acting: Acting, extras: PyTree, *, mapped: bool = False
) -> Played:
    """Return the shapes of the vector steps of an iteration.

    Args:
      length: K, number of vector steps.
      timestep: shapes of ``ActorState.timestep``.
      acting, extras: shapes of the result of ``VectorTrainer.begin``.
      mapped: True if leaves have a leading axis [D].
    """

    def several(leaf: Any) -> Any:
        lead = leaf.shape[:1] if mapped else ()
        return jax.ShapeDtypeStruct((*lead, length, *leaf.shape[len(lead) :]), leaf.dtype)

    timesteps, actions = jax.tree.map(several, (timestep, acting.action))
    return Played(timesteps, actions, (extras,) * length, acting.carry)


def zero_time_step(environment: HostEnvironment, num_envs: int) -> TimeStep:
    """Return a time step of zeros with ``first`` set in every environment."""
    spec = environment.spec
    no = np.zeros(num_envs, bool)
    obs = np.zeros((num_envs, *spec.obs_shape), spec.obs_dtype)
    legal = np.ones((num_envs, spec.num_actions), bool) if spec.masked else None
    return time_step(obs, np.zeros(num_envs), no, no, ~no, spec.obs_dtype, legal)
