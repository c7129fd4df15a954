"""Build the agent and the learning algorithm of a configuration, with optional custom parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.masks import check_takes_masks
from jaxdqn.agent.matmul_precision import with_matmul_precision
from jaxdqn.agent.optimizer import average_first, make_clipped_norm, make_optimizer
from jaxdqn.agent.options import Optimizer
from jaxdqn.agent.sequence_loss import sequences_of
from jaxdqn.communication.collectives import Collectives
from jaxdqn.communication.outer import with_outer_state
from jaxdqn.config.config import Config
from jaxdqn.networks import make_network
from jaxdqn.networks.normalized import of_trained, with_normalization
from jaxdqn.training.dqn import make_dqn_learning
from jaxdqn.training.learning import Learning
from jaxdqn.training.pqn import make_pqn_learning
from jaxdqn.training.r2d2 import make_sequence_learning
from jaxdqn.types import Agent, BatchLoss, EnvSpec, Explore, Network, Replay

MakeReplay = Callable[[Config], Replay]
"""``make_replay(config) -> Replay`` of one device: each ``add`` has ``config.rollout_length`` rows
from each of ``config.envs_per_device`` environments, and a batch has ``config.batch_per_device *
config.accumulate`` examples."""
MakeLearning = Callable[[Config, Agent, Collectives], Learning]
"""``make_learning(config, agent, collectives) -> Learning``"""
MakeAgent = Callable[[Config, EnvSpec, Collectives], Agent]
"""``make_agent(config, spec, collectives) -> Agent``. The agent must average its gradients over the
replicas, as the optimiser ``make_optimizer(config, collectives)`` does."""


class CustomParts(NamedTuple):
    """Custom parts of the agent and of learning; None selects the configured part."""

    optimizer: Optimizer | None = None
    replay: MakeReplay | None = None
    explore: Explore | None = None
    loss: BatchLoss | None = None
    learning: MakeLearning | None = None
    agent: Agent | MakeAgent | None = None

    def check(self, config: Config, network: Any) -> None:
        """Check the type of each part, and its compatibility with other parts and options.

        Raises:
          ValueError: if a part is neither callable nor an ``Agent``, or conflicts with another part
            or an option.
        """
        for name, part in self._asdict().items():
            if part is not None and not callable(part) and not isinstance(part, Agent):
                wanted = "an Agent or a function" if name == "agent" else "a function"
                raise ValueError(f"{name}={part!r}: must be {wanted}")
        of_agent = {"network": network, "optimizer": self.optimizer, "loss": self.loss}
        for name, part in {**of_agent, "explore": self.explore}.items():
            if part is not None and self.agent is not None:
                raise ValueError(f"{name}: must be left out with a custom agent, which has its own")
        if self.agent is not None and config.model_devices > 1:
            raise ValueError(
                f"model_devices={config.model_devices}: must be 1 with a custom agent, whose "
                "network is not split"
            )
        if self.agent is not None and config.normalize_observations:
            raise ValueError(
                "normalize_observations=True: must be False with a custom agent, whose network "
                "cannot be wrapped"
            )
        if self.agent is not None and config.outer_optimizer != "none":
            raise ValueError(
                f"outer_optimizer={config.outer_optimizer!r}: must be 'none' with a custom agent, "
                "whose optimiser state cannot be wrapped"
            )
        if config.importance_ratios:
            for name in ("loss", "learning", "agent"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"importance_ratios=True: must be False with a custom {name}, which "
                        "computes its own targets"
                    )
        if self.replay is None:
            return
        if self.learning is not None:
            raise ValueError("replay: must be left out with a custom learning, which has its own")
        if config.algorithm == "pqn":
            raise ValueError("replay: must be left out with algorithm='pqn', which has no replay")


_NONE = CustomParts()


def build_agent(
    config: Config,
    spec: EnvSpec,
    collectives: Collectives,
    network: Any,
    custom: CustomParts,
    around_network: Callable[[Network], Network] = lambda network: network,
) -> Agent:
    """Build the agent of a configuration with optional custom parts, as ``make_trainer`` does.

    Raises:
      ValueError: if a custom part is invalid, or conflicts with another part or an option.
    """
    custom.check(config, network)
    if custom.agent is not None:
        agent = custom_agent(config, spec, collectives, custom.agent)
        if spec.masked:
            check_takes_masks(agent)
    else:
        built = around_network(make_network(config, spec, network))
        if config.normalize_observations:
            built = with_normalization(built, spec)
        agent = configured_agent(config, built, collectives, custom, masked=spec.masked)
    return with_matmul_precision(agent, config.matmul_precision)


def configured_agent(
    config: Config,
    network: Network,
    collectives: Collectives,
    custom: CustomParts,
    *,
    masked: bool = False,
) -> Agent:
    """Make the agent of a configuration from a network and optional custom parts."""
    if custom.optimizer is None:
        optimizer = make_optimizer(config, collectives)
    else:
        optimizer = average_first(custom.optimizer, config, collectives)
    if config.outer_optimizer != "none":
        optimizer = with_outer_state(optimizer)
    if config.normalize_observations:
        optimizer = of_trained(optimizer)
    return make_agent(
        network,
        optimizer,
        double=config.double,
        loss=custom.loss or config.loss,
        bootstrap="none" if config.algorithm == "pqn" else config.bootstrap,
        exploration=custom.explore or config.exploration,
        accumulate=config.accumulate,
        target_period=config.target_period,
        polyak=config.target_tau is not None,
        sequences=None if config.recurrent == "none" else sequences_of(config),
        rescale=config.rescale_values,
        masked=masked,
        target_epsilon=config.target_epsilon if config.importance_ratios else None,
        measure_gradient=make_clipped_norm(config, collectives)
        if config.diagnostics and custom.optimizer is None
        else None,
    )


def custom_agent(
    config: Config, spec: EnvSpec, collectives: Collectives, agent: Agent | MakeAgent
) -> Agent:
    """Return the custom agent; if ``agent`` is a function, call it for these replicas.

    Raises:
      ValueError: if there are several replicas and ``agent`` is not a function, or if the function
        does not return an ``Agent``.
    """
    if not isinstance(agent, Agent):
        agent = agent(config, spec, collectives)
        if not isinstance(agent, Agent):
            raise ValueError(f"agent: must return an Agent, not {type(agent).__name__}")
    elif collectives.size > 1:
        raise ValueError(
            "agent: must be a function (config, spec, collectives) -> Agent, which averages "
            f"gradients over {collectives.size} replicas"
        )
    return agent


def make_learning(
    config: Config, agent: Agent, collectives: Collectives, custom: CustomParts = _NONE
) -> Learning:
    """Make the learning algorithm of a configuration: PQN, DQN, or R2D2 for a recurrent network.

    Raises:
      ValueError: if a custom function does not return a ``Replay`` or a ``Learning``.
    """
    if custom.learning is not None:
        learning = custom.learning(config, agent, collectives)
        if not isinstance(learning, Learning):
            raise ValueError(f"learning: must return a Learning, not {type(learning).__name__}")
        return learning
    if config.algorithm == "pqn":
        return make_pqn_learning(config, agent, collectives)
    replay = None
    if custom.replay is not None:
        replay = custom.replay(config)
        if not isinstance(replay, Replay):
            raise ValueError(f"replay: must return a Replay, not {type(replay).__name__}")
    make = make_dqn_learning if config.recurrent == "none" else make_sequence_learning
    return make(config, agent, collectives, replay)
