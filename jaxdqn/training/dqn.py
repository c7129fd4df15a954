"""Learning of DQN: minibatches from a replay."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.replay import importance_weights, make_prioritized, make_uniform
from jaxdqn.training.learning import Learning, deciders_of, make_update
from jaxdqn.types import Agent, Array, LearnInfo, Replay, SampleInfo, TrainState, counter_float

_PRIORITY_OFFSET = 1e-6
"""Epsilon of Schaul et al. 2016, section 3.3: no row is left out for an error of zero."""


def make_learning(config: Config, agent: Agent, collectives: Collectives) -> Learning:
    """Make the learning of DQN: minibatches from a replay."""
    replay, steps = make_replay(config), config.gradient_steps_per_iteration
    weigh = _make_weigh(config, collectives)
    update = make_update(config, agent, collectives)

    def gradient_step(state: TrainState, keys: Array) -> tuple[TrainState, tuple[LearnInfo, Array]]:
        batch, drawn = replay.sample(keys[0], state.replay, state.hyper.gamma)
        learner, info, skipped = update(keys[1], state, batch, weigh(state, drawn))
        replayed = replay.update(state.replay, drawn.indices, _priorities(state, info))
        # The TD errors have gone into the replay; M times B of them are not kept.
        info = info._replace(abs_td=jnp.float32(0))
        return state._replace(agent=learner, replay=replayed), (info, skipped)

    return Learning(
        init=replay.init,
        remember=replay.add,
        num_keys=steps * 2,
        prepare=lambda keys, state, rows: (gradient_step, keys.reshape(steps, 2)),
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
    greatest = deciders_of(config, collectives).max

    def weigh(state: TrainState, drawn: SampleInfo) -> Array:
        done = jnp.minimum(counter_float(state.counters.rows) / float(config.total_rows), 1.0)
        exponent = state.hyper.importance_exponent
        exponent = exponent + (1.0 - exponent) * done
        return importance_weights(drawn.probabilities, exponent, greatest)

    return weigh
