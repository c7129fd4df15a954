"""The learner: acting, storing rows and learning, for any source of rows.

A source steps environments: on the device inside the trainer's program, or on the host. It calls
``act`` for the actions of a vector step, steps its environments, and calls ``observe`` with their
time step, K times; then ``remember`` and ``learn`` with the rows [K, E].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.agent.exploration import epsilon_ladder, epsilon_schedule
from jaxdqn.agent.masks import act_on
from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.envs.frame_stack import initial_frames, observed, push_frame
from jaxdqn.networks.int8 import int8_params
from jaxdqn.networks.normalized import first_statistics, update_statistics
from jaxdqn.training.keys import IterationKeys
from jaxdqn.training.learning import Learning, make_learn, no_extras
from jaxdqn.training.metrics import count_step
from jaxdqn.types import (
    ActorState,
    Agent,
    AgentState,
    Array,
    Counters,
    EnvSpec,
    EpisodeStats,
    Exploration,
    Hyper,
    Metrics,
    Params,
    PyTree,
    Row,
    TimeStep,
    TrainState,
    counter_add,
    make_counter,
)


class Decision(NamedTuple):
    """Part of a vector step that is known before the environments step; leaves [E, ...]."""

    obs: Array
    """Observation of the row: the newest frame, or the stack if rows hold stacks."""
    first: Array
    actions: Array
    """[E] int32"""
    carry: PyTree
    """Recurrent carry after the observation."""
    extras: PyTree
    """``Row.extras``"""
    exploration: Exploration


class Learner(NamedTuple):
    """Pure functions of one replica that do not depend on where rows come from."""

    start: Callable[[PyTree, TimeStep], ActorState]
    """``start(env_state, timestep) -> actor``: the state of acting after a reset, leaves [E, ...].
    A source on the host has an empty ``env_state``."""
    init: Callable[[Array, Array, ActorState, Hyper], TrainState]
    """``init(key_agent, key_run, actor, hyper) -> state`` with an empty replay. The agent is made
    from ``key_agent``, which all replicas share."""
    act: Callable[[Array, Params, Hyper, Array, ActorState], Decision]
    """``act(key, params, hyper, rows, actor) -> decision``: exploring actions; ``rows`` [] float32
    are those over all devices before the vector step."""
    recall: Callable[[Hyper, Array, ActorState, Array, PyTree, PyTree], Decision]
    """``recall(hyper, rows, actor, actions, carry, extras) -> decision``: the decision of ``act``
    without the agent, from the parts of it that only the agent can compute."""
    observe: Callable[[ActorState, Decision, PyTree, TimeStep], tuple[ActorState, Row, Metrics]]
    """``observe(actor, decision, env_state, timestep) -> (actor, row[E], metrics)``: add the
    consequence of the actions."""
    remember: Callable[[TrainState, Row, ActorState], TrainState]
    """``remember(state, rows[K, E], actor) -> state``: store and count rows; ``actor`` is the state
    of acting after them."""
    learn: Callable[[PyTree, TrainState, Row, Metrics], tuple[TrainState, Metrics]]
    """``learn(keys, state, rows[K, E], metrics) -> (state, metrics)``: the M gradient steps of an
    iteration; ``metrics`` are those of its acting."""
    empty_replay: Callable[[AgentState, ActorState], PyTree]
    """``empty_replay(agent_state, actor) -> replay`` for rows as acting makes them."""
    key_shapes: IterationKeys
    """Shapes of the keys of an iteration, as ``split_named`` takes them."""


def make_learner(
    config: Config, spec: EnvSpec, agent: Agent, learning: Learning, collectives: Collectives
) -> Learner:
    """Make the learner of one replica from its parts.

    Args:
      config: the run.
      spec: of the environments.
      agent: network, loss and optimiser.
      learning: content of rows, replay and gradient steps.
      collectives: communication between replicas.
    """
    parts = _Parts(config, spec, agent, learning, collectives)
    exploration_of = _make_exploration(config, collectives)
    return Learner(
        start=partial(_start, parts),
        init=partial(_init, parts),
        act=partial(_act, parts, exploration_of),
        recall=partial(_recall, parts, exploration_of),
        observe=partial(_observe, parts),
        remember=partial(_remember, parts),
        learn=partial(_learn, parts, make_learn(config, agent, learning, collectives)),
        empty_replay=partial(_empty_replay, parts),
        key_shapes=IterationKeys(
            next=(),
            act=(config.rollout_length, 1 + config.envs_per_device),
            learn=learning.key_shapes,
        ),
    )


def example_row(spec: EnvSpec, extras: PyTree = ()) -> Row:
    """Return a row of zeros in the shapes of an environment, as ``Replay.init`` takes it."""
    no = jnp.bool_(False)
    obs = jnp.zeros(spec.obs_shape, spec.obs_dtype)
    legal = jnp.zeros(spec.num_actions, jnp.bool_) if spec.masked else ()
    return Row(obs, no, jnp.int32(0), jnp.float32(0), no, no, extras, legal)


class _Parts(NamedTuple):
    config: Config
    spec: EnvSpec
    agent: Agent
    learning: Learning
    collectives: Collectives


def _start(parts: _Parts, env_state: PyTree, timestep: TimeStep) -> ActorState:
    num_envs = timestep.first.shape[0]
    return ActorState(
        env_state=env_state,
        timestep=timestep,
        frames=initial_frames(timestep.obs, parts.config.frame_stack),
        carry=parts.agent.initial_carry(num_envs),
        episode=EpisodeStats(jnp.zeros(num_envs, jnp.float32), jnp.zeros(num_envs, jnp.int32)),
        action=jnp.zeros(num_envs, jnp.int32),
    )


def _init(
    parts: _Parts, key_agent: Array, key_run: Array, actor: ActorState, hyper: Hyper
) -> TrainState:
    obs = observed(actor.frames, actor.timestep.obs)
    agent_state = parts.agent.init(key_agent, obs, hyper=hyper)
    if parts.config.normalize_observations:
        params = first_statistics(agent_state.params, actor.timestep.obs, parts.collectives)
        agent_state = agent_state._replace(params=params)
    return TrainState(
        key=key_run,
        hyper=hyper,
        agent=agent_state,
        replay=_empty_replay(parts, agent_state, actor),
        actor=actor,
        counters=Counters(make_counter(), make_counter(), make_counter()),
    )


def _empty_replay(parts: _Parts, agent_state: AgentState, actor: ActorState) -> PyTree:
    extras = _example_extras(parts.learning, parts.agent, agent_state.params, actor)
    example = example_row(parts.spec, extras)
    if parts.learning.stacked:
        obs = observed(actor.frames, actor.timestep.obs)
        example = example._replace(obs=jnp.zeros(obs.shape[1:], obs.dtype))
    return parts.learning.init(example)


def _example_extras(learning: Learning, agent: Agent, params: Params, actor: ActorState) -> PyTree:
    """Return the extras of one environment's row, as zeros in their shapes; computes nothing."""
    if learning.extras is no_extras:
        return ()

    def extras(params: Params, actor: ActorState) -> PyTree:
        key = jax.random.key(0)
        acted = act_on(agent, key, params, actor.carry, actor.frames, actor.timestep, None)
        return learning.extras(actor, acted[2])

    shapes = jax.eval_shape(extras, params, actor)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), shapes)


def _act(
    parts: _Parts,
    exploration_of: Callable[[Hyper, Array, ActorState], Exploration],
    key: Array,
    params: Params,
    hyper: Hyper,
    rows: Array,
    actor: ActorState,
) -> Decision:
    exploration = exploration_of(hyper, rows, actor)
    if parts.config.act_precision == "int8":
        params = int8_params(params)
    actions, carry, info = act_on(
        parts.agent, key, params, actor.carry, actor.frames, actor.timestep, exploration
    )
    extras = parts.learning.extras(actor, info)
    return _decision(parts, actor, exploration, actions, carry, extras)


def _recall(
    parts: _Parts,
    exploration_of: Callable[[Hyper, Array, ActorState], Exploration],
    hyper: Hyper,
    rows: Array,
    actor: ActorState,
    actions: Array,
    carry: PyTree,
    extras: PyTree,
) -> Decision:
    exploration = exploration_of(hyper, rows, actor)
    return _decision(parts, actor, exploration, actions, carry, extras)


def _decision(
    parts: _Parts,
    actor: ActorState,
    exploration: Exploration,
    actions: Array,
    carry: PyTree,
    extras: PyTree,
) -> Decision:
    timestep = actor.timestep
    obs = observed(actor.frames, timestep.obs) if parts.learning.stacked else timestep.obs
    return Decision(obs, timestep.first, actions, carry, extras, exploration)


def _observe(
    parts: _Parts, actor: ActorState, decision: Decision, env_state: PyTree, timestep: TimeStep
) -> tuple[ActorState, Row, Metrics]:
    row = Row(
        obs=decision.obs,
        first=decision.first,
        action=decision.actions,
        reward=timestep.reward,
        terminated=timestep.terminated,
        truncated=timestep.truncated,
        extras=decision.extras,
        legal=actor.timestep.legal,
    )
    ends = episode_ends(parts.spec, timestep)
    episode, metrics = count_step(actor.episode, row, ~timestep.first, ends, decision.exploration)
    if parts.config.clip_rewards:  # for learning; the episode statistics have the reward as paid
        row = row._replace(reward=jnp.clip(row.reward, -1.0, 1.0))
    frames = push_frame(actor.frames, timestep.obs, timestep.first)
    actor = ActorState(env_state, timestep, frames, decision.carry, episode, decision.actions)
    return actor, row, metrics


def episode_ends(spec: EnvSpec, timestep: TimeStep) -> Array:
    """Return where an episode ends with a vector step, or has ended with the one before, [E]."""
    if spec.terminates_within_episodes:
        return timestep.first
    return timestep.terminated | timestep.truncated


def _remember(parts: _Parts, state: TrainState, rows: Row, actor: ActorState) -> TrainState:
    count = counter_add(state.counters.rows, jnp.int32(parts.config.rows_per_iteration))
    return state._replace(
        agent=_with_statistics(parts, state.agent, rows),
        replay=jax.named_scope("remember")(parts.learning.remember)(state.replay, rows),
        actor=actor,
        counters=state.counters._replace(rows=count),
    )


def _with_statistics(parts: _Parts, agent_state: AgentState, rows: Row) -> AgentState:
    """Return the agent's state with statistics of observations that include the rows [K, E]."""
    if not parts.config.normalize_observations:
        return agent_state
    params = update_statistics(agent_state.params, rows.obs, parts.collectives)
    return agent_state._replace(params=params)


def _learn(
    parts: _Parts,
    gradient_steps: Callable[[PyTree, TrainState, Row], tuple[TrainState, dict[str, Any]]],
    keys: PyTree,
    state: TrainState,
    rows: Row,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    state, learn_metrics = gradient_steps(keys, state, rows)
    steps = jnp.int32(parts.config.gradient_steps_per_iteration)
    counters = state.counters._replace(
        gradient_steps=counter_add(state.counters.gradient_steps, steps)
    )
    metrics = metrics._replace(**learn_metrics)
    return state._replace(counters=counters), metrics


def _make_exploration(
    config: Config, collectives: Collectives
) -> Callable[[Hyper, Array, ActorState], Exploration]:
    """Make ``exploration_of(hyper, rows, actor)`` for one vector step, before which there have
    been ``rows`` [] float32 over all devices."""
    warmup_rows = config.warmup_iterations * config.rows_per_iteration
    num_envs = config.envs_per_device

    def exploration_of(hyper: Hyper, rows: Array, actor: ActorState) -> Exploration:
        epsilon = epsilon_schedule(
            config.epsilon_schedule,
            hyper.epsilon_start,
            hyper.epsilon_end,
            config.epsilon_decay_rows,
            rows - warmup_rows,
        )
        if config.epsilon_ladder is None:
            epsilons = jnp.full((num_envs,), epsilon)
        else:
            index = collectives.index() * num_envs + jnp.arange(num_envs, dtype=jnp.int32)
            epsilons = epsilon_ladder(epsilon, config.epsilon_ladder, index, config.num_envs)
        # The warm-up acts at random.
        epsilons = jnp.where(rows < warmup_rows, 1.0, epsilons)
        exploration = Exploration(epsilon=epsilons, temperature=hyper.temperature)
        if config.epsilon_repeat == 0:
            return exploration
        # An action never repeats from one episode into the next.
        repeat = jnp.where(actor.timestep.first, 0.0, config.epsilon_repeat * epsilons)
        return exploration._replace(repeat=repeat, previous=actor.action)

    return exploration_of
