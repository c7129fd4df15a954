"""Learning of DQN: gradient steps on batches of transitions from a replay."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.replay import importance_weights, make_prioritized, make_uniform
from jaxdqn.training.diagnostics import make_diagnostics
from jaxdqn.training.learning import (
    Learning,
    ReplayKeys,
    make_update,
    no_extras,
    step_collectives,
)
from jaxdqn.types import (
    ActInfo,
    ActorState,
    Agent,
    Array,
    LearnInfo,
    Replay,
    SampleInfo,
    TrainState,
    counter_float,
)

_PRIORITY_OFFSET = 1e-6
"""Epsilon of Schaul et al. 2016, section 3.3; it keeps rows with zero error drawable."""


def make_dqn_learning(
    config: Config, agent: Agent, collectives: Collectives, replay: Replay | None = None
) -> Learning:
    """Make the learning of DQN and its variants for feed-forward networks.

    ``replay`` replaces the configured replay. With ``config.replay="prioritized"`` the importance
    weights are computed from the probabilities that the replay returns.
    """
    replay, steps = replay or make_replay(config), config.gradient_steps_per_iteration
    weights_of = make_importance_weights(config, collectives)
    update = make_update(config, agent, collectives)
    diagnose = make_diagnostics(config, agent)

    def gradient_step(state: TrainState, keys: Array) -> tuple[TrainState, tuple[LearnInfo, Array]]:
        key_sample, key_learn = keys[0], keys[1]
        with jax.named_scope("draw"):
            batch, sample = replay.sample(key_sample, state.replay, state.hyper.gamma)
        weights = weights_of(state, sample)
        agent_state, info, skipped = update(key_learn, state, batch, weights)
        info = diagnose(state, batch, info, weights, sample)
        with jax.named_scope("draw"):
            replay_state = replay.update(state.replay, sample.indices, priorities_of(state, info))
        # The replay has received the TD errors. Drop them, or the scan would stack them, [M, B].
        info = info._replace(abs_td=jnp.float32(0))
        return state._replace(agent=agent_state, replay=replay_state), (info, skipped)

    return Learning(
        init=replay.init,
        remember=replay.add,
        key_shapes=ReplayKeys(gradient_steps=(steps, 2)),
        prepare=lambda keys, state, rows: (gradient_step, keys.gradient_steps),
        extras=_behaviour_prob if config.importance_ratios else no_extras,
    )


def _behaviour_prob(actor: ActorState, info: ActInfo) -> Array:
    """Return the probability [E] of each action, which importance ratios need."""
    return info.behaviour_prob


def make_replay(config: Config) -> Replay:
    """Make one device's replay of transitions."""
    make = make_prioritized if config.replay == "prioritized" else make_uniform
    return make(
        num_envs=config.envs_per_device,
        rows_per_env=config.replay_rows,
        rows_per_add=config.rollout_length,
        batch_size=config.batch_per_device * config.accumulate,
        n_step=config.n_step,
        frame_stack=config.frame_stack,
        paths=config.importance_ratios,
    )


def priorities_of(state: TrainState, info: LearnInfo) -> Array:
    """Return the new priorities [B] of a batch after its gradient step.

    A transition with a non-finite TD error gets the minimum priority. If the loss or the gradient
    norm is not finite, all transitions of the batch get it. The dependence on ``info.grad_norm``
    orders the reads of the sum tree before this write, so the tree is updated in place.
    """
    finite_step = jnp.isfinite(info.loss) & jnp.isfinite(info.grad_norm)
    abs_td = jnp.where(finite_step & jnp.isfinite(info.abs_td), info.abs_td, 0.0)
    return priority_of(abs_td, state.hyper.priority_exponent)


def priority_of(abs_td: Array, exponent: Array) -> Array:
    """Return the priorities [B] of rows with these absolute TD errors."""
    return (abs_td + _PRIORITY_OFFSET) ** exponent


def make_importance_weights(
    config: Config, collectives: Collectives
) -> Callable[[TrainState, SampleInfo], Array]:
    """Make ``weights_of(state, sample) -> weights[B]``, the importance weights of the losses."""
    if config.replay == "uniform":
        return lambda state, sample: jnp.ones_like(sample.probabilities)
    global_max = step_collectives(config, collectives).max

    def weights_of(state: TrainState, sample: SampleInfo) -> Array:
        exponent = importance_exponent(config, state)
        return importance_weights(sample.probabilities, exponent, global_max)

    return weights_of


def importance_exponent(config: Config, state: TrainState) -> Array:
    """Return the exponent [] float32 of the importance weights.

    It rises linearly from ``hyper.importance_exponent`` to 1 over ``rows_of_schedules`` rows.
    """
    rows = counter_float(state.counters.rows)
    progress = jnp.minimum(rows / float(config.rows_of_schedules), 1.0)
    exponent = state.hyper.importance_exponent
    return exponent + (1.0 - exponent) * progress
