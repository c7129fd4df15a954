"""Learning of R2D2: gradient steps on sequences of rows, for recurrent networks."""

from __future__ import annotations

import jax.numpy as jnp

from jaxdqn.agent.sequence_loss import sequences_of
from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.replay import make_sequence
from jaxdqn.training.learning import Learning, ReplayKeys, make_update
from jaxdqn.types import Agent, Array, LearnInfo, Replay, TrainState


def make_sequence_learning(
    config: Config, agent: Agent, collectives: Collectives, replay: Replay | None = None
) -> Learning:
    """Make the learning from uniformly drawn sequences; ``replay`` replaces the configured one."""
    replay, steps = replay or make_sequence_replay(config), config.gradient_steps_per_iteration
    update = make_update(config, agent, collectives)

    def gradient_step(state: TrainState, keys: Array) -> tuple[TrainState, tuple[LearnInfo, Array]]:
        key_sample, key_learn = keys[0], keys[1]
        rows, sample = replay.sample(key_sample, state.replay, state.hyper.gamma)
        weights = jnp.ones_like(sample.probabilities)
        agent_state, info, skipped = update(key_learn, state, rows, weights)
        info = info._replace(abs_td=jnp.float32(0))
        return state._replace(agent=agent_state), (info, skipped)

    return Learning(
        init=replay.init,
        remember=replay.add,
        key_shapes=ReplayKeys(gradient_steps=(steps, 2)),
        prepare=lambda keys, state, rows: (gradient_step, keys.gradient_steps),
        extras=lambda actor, info: actor.carry,
    )


def make_sequence_replay(config: Config) -> Replay:
    """Make the replay of sequences of one device."""
    return make_sequence(
        num_envs=config.envs_per_device,
        rows_per_env=config.replay_rows,
        rows_per_add=config.rollout_length,
        batch_size=config.batch_per_device * config.accumulate,
        length=sequences_of(config).rows,
    )
