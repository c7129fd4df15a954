"""The learner: acting, storing rows and learning, independent of the source of rows.

A source steps environments, for example on the device inside the trainer's program, or on the host.
K times in an iteration it calls ``act`` for the actions, steps the environments, and passes their
time step to ``observe``. Then it calls ``remember`` and ``learn`` with the rows [K, E].
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
    """Results of acting, known before the environments step; leaves [E, ...]."""

    obs: Array
    """Observation to store in the row: the newest frame, or the frame stack if rows store
    stacks."""
    first: Array
    actions: Array
    """[E] int32"""
    carry: PyTree
    """Recurrent carry after the observation."""
    extras: PyTree
    """``Row.extras``"""
    exploration: Exploration


class Learner(NamedTuple):
    """Pure functions of one replica, independent of the source of rows."""

    start: Callable[[PyTree, TimeStep], ActorState]
    """``start(env_state, timestep) -> actor``: the acting state after a reset, leaves [E, ...].
    ``env_state`` is empty for environments on the host."""
    init: Callable[[Array, Array, ActorState, Hyper], TrainState]
    """``init(key_agent, key_run, actor, hyper) -> state`` with an empty replay. ``key_agent``
    initialises the agent and is the same on all replicas."""
    act: Callable[[Array, Params, Hyper, Array, ActorState], Decision]
    """``act(key, params, hyper, rows, actor) -> decision``: choose exploratory actions. ``rows`` []
    float32 is the number of rows over all devices before the vector step."""
    recall: Callable[[Hyper, Array, ActorState, Array, PyTree, PyTree], Decision]
    """``recall(hyper, rows, actor, actions, carry, extras) -> decision``: rebuild the decision of
    ``act`` from the results of the agent, without calling the agent."""
    observe: Callable[[ActorState, Decision, PyTree, TimeStep], tuple[ActorState, Row, Metrics]]
    """``observe(actor, decision, env_state, timestep) -> (actor, row[E], metrics)``: complete the
    row with the reward and the end flags of the step."""
    remember: Callable[[TrainState, Row, ActorState], TrainState]
    """``remember(state, rows[K, E], actor) -> state``: store and count rows. ``actor`` is the
    acting state after these rows."""
    learn: Callable[[PyTree, TrainState, Row, Metrics], tuple[TrainState, Metrics]]
    """``learn(keys, state, rows[K, E], metrics) -> (state, metrics)``: take the M gradient steps of
    an iteration. The argument ``metrics`` holds the metrics of acting, to which those of learning
    are added."""
    empty_replay: Callable[[AgentState, ActorState], PyTree]
    """``empty_replay(agent_state, actor) -> replay`` for the rows that acting produces."""
    key_shapes: IterationKeys
    """Shapes of the keys of an iteration, in the form that ``split_named`` expects."""


def make_learner(
    config: Config, spec: EnvSpec, agent: Agent, learning: Learning, collectives: Collectives
) -> Learner:
    """Make the learner of one replica from its parts.

    Args:
      config: configuration of the run.
      spec: shapes and properties of the environments.
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
    """Return a row of zeros with the shapes of one environment's rows, for ``Replay.init``."""
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
    """Return zeros with the shapes of one environment's ``Row.extras``; run nothing."""
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
    if parts.config.clip_rewards:  # only for learning; episode statistics use the raw reward
        row = row._replace(reward=jnp.clip(row.reward, -1.0, 1.0))
    frames = push_frame(actor.frames, timestep.obs, timestep.first)
    actor = ActorState(env_state, timestep, frames, decision.carry, episode, decision.actions)
    return actor, row, metrics


def episode_ends(spec: EnvSpec, timestep: TimeStep) -> Array:
    """Return [E] bool, True where the end of an episode is reported at this vector step.

    If ``spec.terminates_within_episodes``, the end is reported one step late, by ``first``.
    """
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
    """Update the observation statistics of the agent's parameters with the rows [K, E]."""
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
    """Make ``exploration_of(hyper, rows, actor)``, the exploration parameters of one vector step.

    ``rows`` [] float32 is the number of rows over all devices before the vector step.
    """
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
        # During the warm-up every action is random.
        epsilons = jnp.where(rows < warmup_rows, 1.0, epsilons)
        exploration = Exploration(epsilon=epsilons, temperature=hyper.temperature)
        if config.epsilon_repeat == 0:
            return exploration
        # An action never repeats from one episode into the next.
        repeat = jnp.where(actor.timestep.first, 0.0, config.epsilon_repeat * epsilons)
        return exploration._replace(repeat=repeat, previous=actor.action)

    return exploration_of
