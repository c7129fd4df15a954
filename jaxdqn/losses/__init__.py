"""Losses: per-example functions, vmapped by the caller."""

from jaxdqn.losses.targets import double_q_target, q_learning_target
from jaxdqn.losses.td import huber_loss, squared_loss, td_error, weighted_mean

__all__ = [
    "double_q_target",
    "huber_loss",
    "q_learning_target",
    "squared_loss",
    "td_error",
    "weighted_mean",
]
