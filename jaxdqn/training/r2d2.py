"""Learning of R2D2: gradient steps on sequences of rows, for recurrent networks."""

from __future__ import annotations

from jaxdqn.agent.sequence_loss import sequences_of
from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.replay import make_prioritized_sequence, make_sequence
from jaxdqn.training.dqn import make_dqn_learning
from jaxdqn.training.learning import Learning
from jaxdqn.types import Agent, Replay


def make_sequence_learning(
    config: Config, agent: Agent, collectives: Collectives, replay: Replay | None = None
) -> Learning:
    """Make the learning of R2D2; each sequence starts from the carry stored at acting time.

    ``replay`` replaces the configured replay.
    """
    replay = replay or make_sequence_replay(config)
    learning = make_dqn_learning(config, agent, collectives, replay)
    return learning._replace(extras=lambda actor, info: actor.carry)


def make_sequence_replay(config: Config) -> Replay:
    """Make one device's replay of sequences."""
    make = make_prioritized_sequence if config.replay == "prioritized" else make_sequence
    return make(
        num_envs=config.envs_per_device,
        rows_per_env=config.replay_rows,
        rows_per_add=config.rollout_length,
        batch_size=config.batch_per_device * config.accumulate,
        length=sequences_of(config).rows,
        stride=config.start_stride,
    )
