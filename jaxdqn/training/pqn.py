"""Learning of PQN (Gallici et al. 2024): gradient steps on the newest rows, without replay.

An iteration acts K steps in E environments, computes the Q(lambda) targets of these rows once, and
makes ``epochs`` passes over them in ``minibatches``. Many environments and normalised layers
replace the replay and the target network. Acting and the trainer are shared with DQN.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdqn.agent.masks import act_on
from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.losses import lambda_targets
from jaxdqn.training.diagnostics import make_diagnostics
from jaxdqn.training.learning import GradientStep, Learning, make_update, step_collectives
from jaxdqn.types import Agent, Array, Batch, LearnInfo, PyTree, Row, TrainState


class PqnKeys(NamedTuple):
    """Keys of an iteration of PQN, or their shapes."""

    value: PyTree
    """[], for the Q-values after the last row"""
    orders: PyTree
    """[epochs], for the permutation of the rows in each pass"""
    learn: PyTree
    """[M], for ``Agent.learn``"""


def make_pqn_learning(config: Config, agent: Agent, collectives: Collectives) -> Learning:
    """Make the learning of PQN.

    The ``extras`` [K, E] of the rows hold the maximum Q-value at the time of acting. A row with the
    final observation of an episode is invalid and gets weight 0. All valid rows have the same
    weight, such that the mean weight over the rows of an iteration and over devices is 1.
    """
    update = make_update(config, agent, collectives)
    diagnose = make_diagnostics(config, agent)
    within_step = step_collectives(config, collectives)
    steps, minibatches = config.gradient_steps_per_iteration, config.minibatches

    def prepare(keys: PqnKeys, state: TrainState, rows: Row) -> tuple[GradientStep, PyTree]:
        targets, weights = _targets_and_weights(agent, within_step, keys.value, state, rows)
        size = targets.size
        rows = rows._replace(obs=_zero_invalid(rows.obs, weights > 0))
        data = jax.tree.map(
            lambda leaf: leaf.reshape(size, *leaf.shape[2:]),
            (rows.obs, rows.action, targets, weights),
        )
        orders = jax.vmap(lambda key: jax.random.permutation(key, size))(keys.orders)

        def gradient_step(
            state: TrainState, inputs: tuple[Array, Array]
        ) -> tuple[TrainState, tuple[LearnInfo, Array]]:
            key, indices = inputs
            obs, actions, target, weights = jax.tree.map(lambda leaf: leaf[indices], data)
            zeros = jnp.zeros_like(target)
            batch = Batch(obs_tm1=obs, a_tm1=actions, r_t=target, discount_t=zeros, obs_t=())
            agent_state, info, skipped = update(key, state, batch, weights)
            info = diagnose(state, batch, info, weights, None)
            info = info._replace(abs_td=jnp.float32(0))
            return state._replace(agent=agent_state), (info, skipped)

        return gradient_step, (keys.learn, orders.reshape(steps, size // minibatches))

    return Learning(
        init=lambda example_row: (),
        remember=lambda replay, rows: replay,
        key_shapes=PqnKeys(value=(), orders=(config.epochs,), learn=(steps,)),
        prepare=prepare,
        extras=lambda actor, info: jnp.max(info.q, axis=-1),
        stacked=True,
    )


def _targets_and_weights(
    agent: Agent, collectives: Collectives, key: Array, state: TrainState, rows: Row
) -> tuple[Array, Array]:
    """Return the Q(lambda) targets and the loss weights of the rows, each [K, E]."""
    actor, timestep = state.actor, state.actor.timestep
    # No exploration, and therefore no noise in the values.
    acted = act_on(agent, key, state.agent.params, actor.carry, actor.frames, timestep, None)
    # A row is invalid if the next observation is the first of an episode.
    invalid = jnp.concatenate([rows.first[1:], timestep.first[None]])
    targets = jax.vmap(lambda_targets, in_axes=(1, 1, 1, 1, None), out_axes=1)(
        rows.reward,
        jnp.where(rows.terminated, 0.0, state.hyper.gamma),
        jnp.concatenate([rows.extras, jnp.max(acted[2].q, axis=-1)[None]]),
        invalid,
        state.hyper.trace_decay,
    )
    targets = jnp.where(invalid, 0.0, targets)
    valid = (~invalid).astype(jnp.float32)
    weights = valid / jnp.maximum(collectives.mean(jnp.mean(valid)), 1e-6)
    return targets, weights


def _zero_invalid(obs: Array, valid: Array) -> Array:
    """Return observations [K, E, O] with zeros in invalid rows.

    The final observation of an episode may be arbitrary. The weight of its row is 0, but a NaN in
    the observation would reach the gradient as 0 times NaN.
    """
    if not jnp.issubdtype(obs.dtype, jnp.floating):
        return obs
    valid = valid.reshape(*valid.shape, *(1,) * (obs.ndim - 2))
    return jnp.where(valid, obs, jnp.zeros_like(obs))
