"""Acting on the device: environments step inside the trainer's program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdqn.backend_choices import choices
from jaxdqn.config.config import Config
from jaxdqn.envs.autoreset import ResetPool, advance_of, fill_pool, step_from_pool
from jaxdqn.envs.one_hot import select_at_indices
from jaxdqn.errors import reject
from jaxdqn.training.learner import Learner
from jaxdqn.training.metrics import mean_metrics, scan_and_add
from jaxdqn.training.resets import resolve_reset
from jaxdqn.types import (
    ActorState,
    Array,
    Environment,
    Metrics,
    PyTree,
    Row,
    TimeStep,
    TrainState,
    counter_float,
)


def make_act(
    config: Config, environment: Environment, learner: Learner
) -> Callable[[Array, TrainState], tuple[Row, ActorState, Metrics]]:
    """Make ``act(keys[K, 1 + E], state) -> (rows[K, E], actor_state, metrics)``, K vector steps.

    ``keys[k]`` holds the keys of vector step k: one for the agent, then one for each environment.
    The metrics cover this device only.
    """
    fill, step_envs = _make_steps(resolve_reset(config, environment), environment)

    def vector_step(
        keys: Array, acting: tuple[ActorState, PyTree], state: TrainState, row_offset: Array
    ) -> tuple[tuple[ActorState, PyTree], Row, Metrics]:
        actor, pool = acting
        key_agent, keys_environment = keys[0], keys[1:]
        rows = counter_float(state.counters.rows) + row_offset
        with jax.named_scope("act"):
            decision = learner.act(key_agent, state.agent.params, state.hyper, rows, actor)
        with jax.named_scope("env"):
            env_state, after, pool = step_envs(pool, keys_environment, actor, decision.actions)
        actor, row, metrics = learner.observe(actor, decision, env_state, after)
        return (actor, pool), row, metrics

    def act(keys: Array, state: TrainState) -> tuple[Row, ActorState, Metrics]:
        # Number of rows over all devices between the start of the iteration and each vector step.
        row_offsets = jnp.arange(config.rollout_length, dtype=jnp.float32) * config.num_envs
        (actor, _), rows, metrics = scan_and_add(
            lambda acting, inputs: vector_step(inputs[0], acting, state, inputs[1]),
            (state.actor, fill(keys)),
            (keys, row_offsets),
            unroll=True,
            pack=config.model_devices == 1,
        )
        return rows, actor, mean_metrics(metrics, config.rollout_length)

    return act


def _make_steps(config: Config, environment: Environment) -> tuple[Any, Any]:
    """Make ``fill(keys[K, 1 + E]) -> pool`` and the step of E environments.

    Without pooled resets the pool is empty. The second function is
    ``step_envs(pool, keys[E], actor, actions[E]) -> (env_state, timestep, pool)``.
    """

    select = choices().select_at_indices
    step = select_at_indices(environment.step) if select else environment.step

    def step_every(
        pool: PyTree, keys: Array, actor: ActorState, actions: Array
    ) -> tuple[PyTree, TimeStep, PyTree]:
        return *jax.vmap(step)(keys, actor.env_state, actions), pool

    if config.reset == "every-step":
        return lambda keys: (), step_every
    if advance_of(environment) is None:
        reject("reset", "pooled", "'every-step' for an environment whose step cannot be separated "
               "from its reset; make_environment builds one that can")  # fmt: skip

    def step_pooled(
        pool: ResetPool, keys: Array, actor: ActorState, actions: Array
    ) -> tuple[PyTree, TimeStep, ResetPool]:
        return step_from_pool(environment, pool, keys, actor.env_state, actor.timestep, actions)

    return lambda keys: fill_pool(environment, keys[0, 0], config.resets_in_pool), step_pooled
