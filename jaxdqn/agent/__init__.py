"""Agents: acting, the gradient step and their parts."""

from jaxdqn.agent.agent import Optimizer, make_agent
from jaxdqn.agent.optimizer import make_optimizer

__all__ = ["Optimizer", "make_agent", "make_optimizer"]
