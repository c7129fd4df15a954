"""Agents: acting, the gradient step and their parts."""

from jaxdqn.agent.agent import make_agent
from jaxdqn.agent.optimizer import make_optimizer
from jaxdqn.agent.options import Optimizer

__all__ = ["Optimizer", "make_agent", "make_optimizer"]
