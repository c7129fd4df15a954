"""Agent and learning of the algorithm that a configuration names."""

from __future__ import annotations

from jaxdqn.agent.agent import Optimizer, make_agent
from jaxdqn.agent.optimizer import average_first, make_optimizer
from jaxdqn.agent.sequence_loss import sequences_of
from jaxdqn.communication.collectives import Collectives
from jaxdqn.config.config import Config
from jaxdqn.training.dqn import make_dqn_learning
from jaxdqn.training.learning import Learning
from jaxdqn.training.pqn import make_pqn_learning
from jaxdqn.training.r2d2 import make_sequence_learning
from jaxdqn.types import Agent, BatchLoss, Network


def configured_agent(
    config: Config,
    network: Network,
    collectives: Collectives,
    *,
    optimizer: Optimizer | None = None,
    loss: BatchLoss | None = None,
) -> Agent:
    """Make the agent of a configuration, with the caller's own parts where they are not None."""
    if optimizer is None:
        optimizer = make_optimizer(config, collectives)
    else:
        optimizer = average_first(optimizer, config, collectives)
    return make_agent(
        network,
        optimizer,
        double=config.double,
        loss=config.loss if loss is None else loss,
        bootstrap="none" if config.algorithm == "pqn" else config.bootstrap,
        exploration=config.exploration,
        accumulate=config.accumulate,
        target_period=config.target_period,
        polyak=config.target_tau is not None,
        sequences=None if config.recurrent == "none" else sequences_of(config),
        rescale=config.rescale_values,
    )


def configured_learning(config: Config, agent: Agent, collectives: Collectives) -> Learning:
    """Make the learning of a configuration: PQN, DQN, or R2D2 for a recurrent network."""
    if config.algorithm == "pqn":
        return make_pqn_learning(config, agent, collectives)
    make = make_dqn_learning if config.recurrent == "none" else make_sequence_learning
    return make(config, agent, collectives)
